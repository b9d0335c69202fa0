"""Reinforcement learning with verifiable rewards: sample groups, score them, learn the difference.

An algorithm is a handful of explicit choices (`Algorithm`) over shared parts; one source makes
the rollouts and one objective is their loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from strop.errors import StropError
from strop.ledger import Ledger
from strop.model.scoring import Batch
from strop.protocols import Task
from strop.sampling.policy import Policy, rollout_datum
from strop.tasks.base import judge_all
from strop.train.kl import KLProbe
from strop.train.loop import Progress, StageDir, Step, TrainConfig, train
from strop.types import Author, Datum, Judged, Rollout, Sampling


@dataclass(frozen=True)
class Algorithm:
    """What tells one policy-gradient method from another.

    baseline: what is taken off a reward, the mean of its prompt's group or of the whole step.
    normalise: divide a group's advantages by its standard deviation.
    clip: PPO's bounds on the probability ratio (Schulman et al. 2017), or None for no ratio.
    aggregate: a sequence's loss is the mean or the sum of its tokens' losses.
    """

    baseline: Literal["group", "step"]
    normalise: bool
    clip: tuple[float, float] | None
    aggregate: Literal["mean", "sum"]


ALGORITHMS = {
    # Shao et al. 2024 (DeepSeekMath), equation 3.
    "grpo": Algorithm(baseline="group", normalise=True, clip=(0.8, 1.2), aggregate="mean"),
    # Williams 1992, with the step's mean reward as the baseline.
    "reinforce": Algorithm(baseline="step", normalise=False, clip=None, aggregate="sum"),
}


PARITY_FP32 = 1e-4  # allowed difference of a token's log-prob between sampler and trainer, in fp32


class RLConfig(TrainConfig):
    """RL with verifiable rewards. `task` and `data` say where prompts and verdicts come from."""

    algorithm: Literal["grpo", "reinforce"] = "grpo"
    task: str = Field("arithmetic", description="a registered task, or path/to/file.py:ClassName")
    data: str | None = Field(None, description="rows for tasks that read a file, such as gsm8k")
    options: dict = Field(default_factory=dict, description="further options of the task")
    steps: int = Field(20, ge=0)
    prompts_per_step: int = Field(32, gt=0)
    samples_per_prompt: int = Field(8, gt=1)
    max_tokens: int = Field(96, gt=0, description="longest completion")
    temperature: float = Field(1.0, gt=0)
    kl_coef: float = Field(0.0, ge=0, description="weight of the k3 estimate of KL to the reference in the loss")
    kl_every: int = Field(5, gt=0, description="steps between two KL measurements on the fixed prompts")
    lr: float = Field(2e-4, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"


def advantages(rewards_G_S: np.ndarray, algorithm: Algorithm) -> np.ndarray:
    """Advantages of S samples for each of G prompts; NaN marks an invalid reward and stays NaN,
    out of every mean. Both [G, S]."""
    axis = 1 if algorithm.baseline == "group" else None
    judged = ~np.isnan(rewards_G_S)
    count = np.maximum(judged.sum(axis, keepdims=True), 1)
    centred = rewards_G_S - np.nansum(rewards_G_S, axis, keepdims=True) / count
    if algorithm.normalise:
        variance = np.nansum(centred**2, axis, keepdims=True) / count
        centred = centred / (np.sqrt(variance) + 1e-6)
    return centred


class PolicyGradient:
    """Clipped policy gradient plus kl_coef times k3 to the reference, over the number of sequences.

    Reads the fields `advantage`, `old_logprob`, `scale` (1/length for a mean over the sequence's
    tokens) and, with a KL term, `ref_logprob`.
    """

    def __init__(self, algorithm: Algorithm, temperature: float, kl_coef: float, tolerance: float | None):
        self.algorithm, self.temperature, self.kl_coef = algorithm, temperature, kl_coef
        self.tolerance = tolerance

    def denominator(self, datums: Sequence[Datum]) -> float:
        return float(max(1, len(datums)))

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        advantage, old = batch.fields["advantage"], batch.fields["old_logprob"]
        ratio = (logprobs - old).exp()
        drift = (logprobs.detach() - old).abs()
        self._check_parity(drift)
        metrics = {"entropy": entropy.detach().sum(), "drift": drift.sum()}
        if self.algorithm.clip is None:
            loss = -advantage * logprobs
        else:
            clipped = ratio.clamp(*self.algorithm.clip)
            loss = -torch.minimum(ratio * advantage, clipped * advantage)
            metrics["clipped"] = ((clipped - ratio) * advantage < 0).float().sum()
        if self.kl_coef:
            gap = batch.fields["ref_logprob"] - logprobs
            k3 = gap.exp() - 1 - gap  # Schulman 2020, "Approximating KL divergence"
            loss = loss + self.kl_coef * k3
            metrics["k3"] = k3.detach().sum()
        return (batch.fields["scale"] * loss).sum(), metrics

    def _check_parity(self, drift: Tensor) -> None:
        """One update per batch of rollouts: the trainer's log-probs must be the sampler's."""
        worst = float(drift.max()) if len(drift) else 0.0
        if self.tolerance is not None and worst > self.tolerance:
            raise StropError(
                f"sampler and trainer disagree on a log-prob by {worst:.2g} (allowed {self.tolerance:g}): "
                "their weights or temperatures differ"
            )


class RolloutSource:
    """Gives the loop its steps: draw prompts, sample a group for each, judge, weigh.

    Depends on the step, the seed and the policy's weights alone, so a resumed run repeats itself.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        config: RLConfig,
        seed: int,
        probe: KLProbe | None,
        reference: Policy | None,
        preview: Callable[[Rollout], None],
    ):
        self.prompts = task.prompts("train")
        if not self.prompts:
            raise StropError(f"task {task.name}: split 'train' has no prompts")
        self.policy, self.task, self.config, self.seed = policy, task, config, seed
        self.probe, self.reference, self.preview = probe, reference, preview
        self.algorithm = ALGORITHMS[config.algorithm]

    def __call__(self, step: int) -> Step:
        groups = self.rollouts(step)
        if step == 0:
            self.preview(groups[0][0])
        judged = judge_all(self.task, [r for group in groups for r in group])
        values = [np.nan if j.verdict.correctness is None else j.verdict.correctness for j in judged]
        rewards = np.array(values, float).reshape(len(groups), -1)
        weights = advantages(rewards, self.algorithm)
        datums = self._datums(judged, weights.ravel())
        metrics = step_metrics(judged, rewards)
        if self.probe is not None and step % self.config.kl_every == 0:
            metrics["kl"] = self.probe.measure(self.policy)
        ledger = sum((j.rollout.ledger for j in judged), Ledger())
        return Step(datums, float(max(1, (~np.isnan(rewards)).sum())), metrics, ledger)

    def rollouts(self, step: int) -> list[list[Rollout]]:
        """This step's groups: prompts in an order shuffled each epoch, seeds no other step uses."""
        config, n = self.config, len(self.prompts)
        chosen = []
        for i in range(step * config.prompts_per_step, (step + 1) * config.prompts_per_step):
            epoch, place = divmod(i, n)
            chosen.append(self.prompts[shuffled(n, self.seed, epoch)[place]])
        sampling = Sampling(
            temperature=config.temperature, max_tokens=config.max_tokens, seed=(self.seed << 40) + (step << 20)
        )
        return self.policy.sample(chosen, sampling, config.samples_per_prompt)

    def _datums(self, judged: Sequence[Judged], weights: np.ndarray) -> list[Datum]:
        """Rows that carry gradient: all judged ones under a KL term, else those with an advantage."""
        kept = [
            (j.rollout, a)
            for j, a in zip(judged, weights, strict=True)
            if not np.isnan(a) and (abs(a) > 1e-8 or self.config.kl_coef)
        ]
        refs = (
            self.reference.score([r for r, _ in kept], self.config.temperature)
            if self.config.kl_coef and self.reference
            else None
        )
        datums = []
        for i, (rollout, advantage) in enumerate(kept):
            fields = {"old_logprob": spread(rollout, rollout.logprobs), "advantage": advantage}
            length = len(rollout.completion_ids)
            fields["scale"] = 1.0 / length if self.algorithm.aggregate == "mean" else 1.0
            if refs is not None:
                fields["ref_logprob"] = spread(rollout, refs[i])
            datums.append(rollout_datum(rollout, **fields))
        return datums


@lru_cache(maxsize=4)
def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


def spread(rollout: Rollout, values: Sequence[float]) -> np.ndarray:
    """Values of the policy's own tokens laid over all of the rollout's tokens, 0 elsewhere."""
    out = np.zeros(len(rollout.ids), np.float32)
    out[[i for i, author in enumerate(rollout.authors) if author is Author.POLICY]] = values
    return out


def step_metrics(judged: Sequence[Judged], rewards_G_S: np.ndarray) -> dict[str, float]:
    """What a step's rollouts looked like."""
    spread_groups = np.nanmax(rewards_G_S, 1) > np.nanmin(rewards_G_S, 1)
    return {
        "reward": float(np.nanmean(rewards_G_S)),
        "informative": float(spread_groups.mean()),
        "length": float(np.mean([len(j.rollout.completion_ids) for j in judged])),
        "truncated": float(np.mean([j.rollout.finish == "length" for j in judged])),
        "invalid": float(np.mean([j.verdict.invalid is not None for j in judged])),
    }


def rl(
    policy: Policy,
    task: Task,
    config: RLConfig,
    stage: StageDir,
    seed: int = 0,
    probe: KLProbe | None = None,
    progress: Progress = lambda step, steps, metrics: None,
    preview: Callable[[Rollout], None] = lambda rollout: None,
) -> Ledger:
    """Train `policy` in place by reinforcement learning on `task`'s training prompts.

    With `kl_coef`, the probe's reference is what the policy is held to. `preview` is shown the
    first rollout that is learnt from.
    """
    if config.kl_coef and probe is None:
        raise StropError("kl_coef needs a reference policy; give a KL probe")
    reference = probe.reference if probe and config.kl_coef else None
    tolerance = PARITY_FP32 if policy.autocast is None else None
    objective = PolicyGradient(ALGORITHMS[config.algorithm], config.temperature, config.kl_coef, tolerance)
    source = RolloutSource(policy, task, config, seed, probe, reference, preview)
    return train(policy, source, objective, config, config.steps, stage, progress)
