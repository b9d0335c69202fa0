"""The one training loop, blind to algorithms: a source gives each step's rows, an objective turns log-probs into a
numerator; micro-batches, the step's one denominator, clipping, updates, metrics and checkpoints are the loop's."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from strop.errors import StropError
from strop.ledger import Ledger
from strop.model.scoring import Batch, collate, micro_batches, predict
from strop.sampling.policy import Policy
from strop.train.optim import Optimizer, Schedule, learning_rate
from strop.types import Datum

Progress = Callable[[int, int, Mapping[str, float]], None]  # steps done, steps in all, the step's metrics


class TrainConfig(BaseModel):
    """What every training stage can set."""

    model_config = ConfigDict(extra="forbid")

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: Schedule = Field("linear", description="how the rate falls after warm-up")
    warmup: float = Field(0.03, ge=0, le=1, description="share of the steps spent warming up")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: for the blocks' matrices")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_tokens: int = Field(4096, gt=0, description="padded tokens run forward and backward at once")
    save_seconds: float = Field(10.0, ge=0, description="least time between two resume checkpoints")


@dataclass(frozen=True)
class Step:
    """One update's rows. `denominator` is the whole step's, with rows left out for carrying no gradient."""

    datums: Sequence[Datum]
    denominator: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    ledger: Ledger = Ledger()


class Objective(Protocol):
    """A loss as its numerator; the denominator is the step's, so padding and accumulation change nothing."""

    @property
    def temperature(self) -> float:
        """The temperature that log-probs are predicted at: the one they were sampled at."""

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Numerator over a batch's active tokens (a scalar), and metrics summed over those tokens."""


@dataclass(frozen=True)
class Stage:
    """Where a stage leaves its traces (`metrics.jsonl` and the resume checkpoint), its seed, and who is told of it."""

    path: Path
    seed: int = 0
    progress: Progress = lambda step, steps, metrics: None

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "resume.safetensors"

    def save(self, policy: Policy, optimizer: Optimizer, step: int, ledger: Ledger) -> None:
        """Write weights, optimizer state, step and ledger as one file, atomically."""
        tensors = {f"weight|{n}": p.detach() for n, p in policy.decoder.named_parameters()}
        tensors |= {f"optim|{n}": t for n, t in optimizer.state().items()}
        size = self.metrics.stat().st_size if self.metrics.exists() else 0
        notes = {"step": str(step), "metrics_bytes": str(size), "ledger": json.dumps(ledger.as_dict())}
        partial = self.checkpoint.with_suffix(".partial")
        save_file({n: t.contiguous() for n, t in tensors.items()}, partial, metadata=notes)
        os.replace(partial, self.checkpoint)

    def load(self, policy: Policy, optimizer: Optimizer) -> tuple[int, Ledger]:
        """Take up the last checkpoint, cutting metrics that came after it; (0, empty) where there is none."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.checkpoint.exists():
            self.metrics.unlink(missing_ok=True)
            return 0, Ledger()
        tensors: dict[str, dict[str, Tensor]] = {"weight": {}, "optim": {}}
        with safe_open(self.checkpoint, "pt", device=str(policy.decoder.device)) as file:
            notes = file.metadata()
            for name in file.keys():  # noqa: SIM118
                kind, _, rest = name.partition("|")
                tensors[kind][rest] = file.get_tensor(name)
        policy.update_weights(tensors["weight"], int(notes["step"]))
        optimizer.load_state(tensors["optim"])
        if self.metrics.exists():
            os.truncate(self.metrics, int(notes["metrics_bytes"]))
        return int(notes["step"]), Ledger(**json.loads(notes["ledger"]))


def train(
    policy: Policy, source: Callable[[int], Step], objective: Objective, config: TrainConfig, steps: int, stage: Stage
) -> Ledger:
    """Update `policy` in place to `steps`, from the last checkpoint in `stage`; StropError when the loss is not finite.
    A resumed run ends in the same bits where `source(step)` depends on the step, seed and weights alone."""
    optimizer = Optimizer(policy.decoder, config.optimizer, config.weight_decay)
    first, ledger = stage.load(policy, optimizer)
    saved = time.monotonic()
    for step in range(first, steps):
        began = time.perf_counter()
        given = source(step)
        metrics = accumulate(policy, objective, given, config.micro_tokens)
        lr = learning_rate(step, steps, config.lr, config.warmup, config.schedule)
        norm = optimizer.step(lr, config.max_grad_norm) if math.isfinite(metrics["loss"]) else math.nan
        if not math.isfinite(norm):
            raise StropError(f"step {step}: loss or gradient is not finite; lower lr (now {config.lr:g})")
        policy.version = step + 1
        tokens = sum(len(d) for d in given.datums)
        context = max((len(d) for d in given.datums), default=0) / 2
        flops = 3 * policy.decoder.shape.forward_flops(tokens, context)
        spent, seconds = Ledger(trained_tokens=tokens, flops=flops), time.perf_counter() - began
        ledger += replace(given.ledger + spent, seconds=seconds)  # the rollouts' own seconds lie within the step's
        row = {"step": step, "lr": lr, **metrics, "grad_norm": norm, **given.metrics}
        row |= {"tokens": tokens, "seconds": seconds}
        with stage.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        stage.progress(step + 1, steps, row)
        if time.monotonic() - saved >= config.save_seconds and step + 1 < steps:
            stage.save(policy, optimizer, step + 1, ledger)
            saved = time.monotonic()
    return ledger


def accumulate(policy: Policy, objective: Objective, given: Step, micro_tokens: int) -> dict[str, float]:
    """Gradients of one step over micro-batches; returns the loss and token means of the objective's metrics."""
    loss, count, sums = 0.0, 0, dict[str, float]()
    policy.decoder.train().zero_grad()
    for micro in micro_batches(given.datums, micro_tokens):
        batch = collate(micro, policy.decoder.device)
        if len(batch.targets) == 0:
            continue
        with policy.precision():
            logprobs, entropy = predict(policy.decoder, batch, objective.temperature)
        numerator, metrics = objective(logprobs, entropy, batch)
        (numerator / given.denominator).backward()
        loss += float(numerator.detach()) / given.denominator
        count += len(batch.targets)
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    policy.decoder.eval()
    return {"loss": loss, **{name: value / count for name, value in sums.items()}}
