"""AdamW, or Muon for the blocks' matrices with AdamW for everything else; and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(step: int, steps: int, peak: float, warmup: float, schedule: Schedule, floor: float = 0.0) -> float:
    """Rate at `step` of `steps`: linear warm-up over a `warmup` share of the steps, then as scheduled
    down to `floor` times the peak."""
    warm = warmup * steps
    if step + 1 <= warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1.0, steps - warm)
    if schedule == "linear":
        return peak * (1 - done * (1 - floor))
    if schedule == "cosine":
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
    return peak


class Optimizer:
    """One or two torch optimizers behind one step. `muon` orthogonalises the momentum of the blocks'
    matrices (Jordan et al. 2024), scaled to AdamW's update size (Liu et al. 2025), so that one learning
    rate serves both; embeddings, norms and head stay with AdamW."""

    def __init__(
        self,
        model: nn.Module,
        kind: Literal["adamw", "muon"],
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
    ):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.names = [n for n, _ in named]
        self.parameters = [p for _, p in named]
        matrices = [p for n, p in named if kind == "muon" and p.dim() == 2 and ".layers." in n]
        chosen = {id(p) for p in matrices}
        rest = [p for p in self.parameters if id(p) not in chosen]
        adamw = torch.optim.AdamW(rest, lr=0.0, betas=betas, weight_decay=weight_decay, foreach=True)
        self._parts: list[torch.optim.Optimizer] = [adamw]
        if matrices:
            muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)

    def step(self, lr: float, max_norm: float) -> float:
        """Clip, update, clear the gradients; returns the gradient norm before clipping. A step whose
        gradient is absent or not finite changes nothing."""
        gradients = [p for p in self.parameters if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(gradients, max_norm)) if gradients else 0.0
        if norm > 0 and math.isfinite(norm):
            for part in self._parts:
                for group in part.param_groups:
                    group["lr"] = lr
                part.step()
        for p in self.parameters:
            p.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors by parameter name, for a checkpoint."""
        return {f"{name}|{key}": value for name, key, value in self._entries()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        by_name: dict[str, dict[str, Any]] = {}
        for entry, value in tensors.items():
            name, key = entry.rsplit("|", 1)
            by_name.setdefault(name, {})[key] = value
        parameters = dict(zip(self.names, self.parameters, strict=True))
        for part in self._parts:
            owned = {id(p) for group in part.param_groups for p in group["params"]}
            for name, values in by_name.items():
                if id(parameter := parameters[name]) in owned:
                    part.state[parameter] = values

    def _entries(self) -> Iterable[tuple[str, str, Tensor]]:
        names = {id(p): n for n, p in zip(self.names, self.parameters, strict=True)}
        for part in self._parts:
            for parameter, values in part.state.items():
                for key, value in values.items():
                    yield names[id(parameter)], key, torch.as_tensor(value)
