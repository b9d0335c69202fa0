"""AdamW, or Muon for the blocks' matrices with AdamW for the rest; and the learning-rate schedule."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(step: int, steps: int, peak: float, warmup: float, schedule: Schedule) -> float:
    """Rate at `step` of `steps`: linear warm-up over a `warmup` share of the steps, then down to 0 as scheduled."""
    warm = warmup * steps
    if step + 1 <= warm:
        return peak * (step + 1) / warm
    done = max(0.0, step - warm) / max(1.0, steps - warm)
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return peak * shapes[schedule]


class Optimizer:
    """AdamW, and where `kind` is muon also Muon for the blocks' matrices (Jordan et al. 2024), scaled to AdamW's update
    size (Liu et al. 2025) so that one learning rate serves both."""

    def __init__(self, model: nn.Module, kind: Literal["adamw", "muon"], weight_decay: float = 0.0):
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        matrices = [p for n, p in self.parameters.items() if kind == "muon" and p.dim() == 2 and ".layers." in n]
        rest = [p for p in self.parameters.values() if not any(p is m for m in matrices)]
        adamw = torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.95), weight_decay=weight_decay, foreach=True)
        self._parts: list[torch.optim.Optimizer] = [adamw]
        if matrices:
            scale = "match_rms_adamw"
            self._parts.append(torch.optim.Muon(matrices, lr=0.0, weight_decay=weight_decay, adjust_lr_fn=scale))

    def step(self, lr: float, max_norm: float) -> float:
        """Clip, update and clear the gradients; returns their norm. One that is 0 or not finite changes nothing."""
        given = [p for p in self.parameters.values() if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(given, max_norm)) if given else 0.0
        if norm > 0 and math.isfinite(norm):
            for part in self._parts:
                for group in part.param_groups:
                    group["lr"] = lr
                part.step()
        for p in given:
            p.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors as `parameter|entry`, for a checkpoint."""
        names = {id(p): n for n, p in self.parameters.items()}
        states = [(names[id(p)], values) for part in self._parts for p, values in part.state.items()]
        return {f"{name}|{key}": torch.as_tensor(value) for name, values in states for key, value in values.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        owner = {id(p): part for part in self._parts for group in part.param_groups for p in group["params"]}
        for entry, value in tensors.items():
            name, _, key = entry.rpartition("|")
            parameter = self.parameters[name]
            owner[id(parameter)].state[parameter][key] = value
