"""Reinforcement learning with verifiable rewards: sample groups, score them, learn the difference."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor, minimum

from strop.errors import StropError
from strop.ledger import Ledger
from strop.model.scoring import Batch
from strop.protocols import Task
from strop.sampling.policy import Policy, rollout_datum
from strop.tasks.base import judge_all
from strop.train.kl import KLProbe
from strop.train.loop import Stage, Step, TrainConfig, train
from strop.types import Author, Datum, Judged, Prompt, Rollout, Sampling


@dataclass(frozen=True)
class Algorithm:
    """What tells one policy-gradient method from another."""

    baseline: Literal["group", "step"]  # whose mean is taken off a reward
    normalise: bool  # divide advantages by their standard deviation
    clip: tuple[float, float] | None  # PPO's bounds on the probability ratio (Schulman et al. 2017); None: no ratio
    aggregate: Literal["mean", "sum"]  # of a sequence's token losses


ALGORITHMS = {
    "grpo": Algorithm("group", normalise=True, clip=(0.8, 1.2), aggregate="mean"),  # DeepSeekMath (Shao 2024), eq. 3
    "reinforce": Algorithm("step", normalise=False, clip=None, aggregate="sum"),  # Williams 1992
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
    """Advantages [G, S] of rewards [G, S]; an invalid reward is NaN, stays so, and is left out of every mean."""
    axis = 1 if algorithm.baseline == "group" else None
    count = np.maximum((~np.isnan(rewards_G_S)).sum(axis, keepdims=True), 1)
    centred = rewards_G_S - np.nansum(rewards_G_S, axis, keepdims=True) / count
    deviation = np.sqrt(np.nansum(centred**2, axis, keepdims=True) / count)
    return centred / (deviation + 1e-6) if algorithm.normalise else centred


@dataclass(frozen=True)
class PolicyGradient:
    """Policy gradient, clipped as the algorithm says, plus kl_coef times k3 to the reference. With one update per batch
    the trainer's log-probs must be the sampler's: StropError where one differs by more than `tolerance` nats."""

    algorithm: Algorithm
    temperature: float = 1.0
    kl_coef: float = 0.0
    tolerance: float = PARITY_FP32

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        advantage, old = batch.fields["advantage"], batch.fields["old_logprob"]
        drift = (logprobs.detach() - old).abs()
        if len(drift) and drift.max() > self.tolerance:
            worst = f"by {drift.max():.2g} nats ({self.tolerance:g} allowed)"
            raise StropError(f"sampler and trainer disagree on a token {worst}: their weights or temperatures differ")
        metrics = {"entropy": entropy.detach().sum(), "drift": drift.sum()}
        if self.algorithm.clip is None:
            loss = -advantage * logprobs
        else:
            ratio = (logprobs - old).exp()
            clipped = ratio.clamp(*self.algorithm.clip)
            loss = -minimum(ratio * advantage, clipped * advantage)
            metrics["clipped"] = (clipped * advantage < ratio * advantage).float().sum()
        if self.kl_coef:
            gap = batch.fields["ref_logprob"] - logprobs
            k3 = gap.exp() - 1 - gap  # Schulman 2020, "Approximating KL divergence"
            loss, metrics["k3"] = loss + self.kl_coef * k3, k3.detach().sum()
        return (batch.fields["scale"] * loss).sum(), metrics


def rl(
    policy: Policy,
    task: Task,
    config: RLConfig,
    stage: Stage,
    probe: KLProbe | None = None,
    preview: Callable[[Rollout], None] = lambda rollout: None,
) -> Ledger:
    """Train `policy` in place on `task`'s training prompts, held with `kl_coef` to the probe's reference; `preview` is
    shown the first rollout. A step depends on its number, the seed and the weights alone, so resuming repeats it."""
    prompts, algorithm = task.prompts("train"), ALGORITHMS[config.algorithm]
    if not prompts:
        raise StropError(f"task {task.name}: split 'train' has no prompts")
    if config.kl_coef and probe is None:
        raise StropError("kl_coef needs a reference policy; give a KL probe")
    reference = probe.reference if probe and config.kl_coef else None

    def source(step: int) -> Step:
        # The seed's place, the step's and the sample's don't overlap: no two draws of a run share a seed.
        sampling = Sampling(config.temperature, max_tokens=config.max_tokens, seed=(stage.seed << 40) + (step << 20))
        asked = draw(prompts, step * config.prompts_per_step, config.prompts_per_step, stage.seed)
        rollouts = [r for group in policy.sample(asked, sampling, config.samples_per_prompt) for r in group]
        if step == 0:
            preview(rollouts[0])
        judged = judge_all(task, rollouts)
        rewards = np.array([j.verdict.correctness for j in judged], float).reshape(len(asked), -1)  # None: NaN
        metrics = step_metrics(judged, rewards)
        if probe is not None and step % config.kl_every == 0:
            metrics["kl"] = probe.measure(policy)
        datums = rollout_datums(rollouts, advantages(rewards, algorithm).ravel(), algorithm, reference)
        count = max(1.0, float((~np.isnan(rewards)).sum()))  # sequences, those without an advantage too
        return Step(datums, count, metrics, sum((r.ledger for r in rollouts), Ledger()))

    tolerance = PARITY_FP32 if policy.autocast is None else math.inf
    objective = PolicyGradient(algorithm, config.temperature, config.kl_coef, tolerance)
    return train(policy, source, objective, config, config.steps, stage)


def draw(prompts: Sequence[Prompt], first: int, count: int, seed: int) -> list[Prompt]:
    """Prompts number `first` to `first + count` of an endless order that is shuffled anew each epoch."""
    places = [divmod(i, len(prompts)) for i in range(first, first + count)]
    orders = {e: np.random.default_rng([seed, e]).permutation(len(prompts)) for e in {e for e, _ in places}}
    return [prompts[orders[epoch][i]] for epoch, i in places]


def rollout_datums(
    rollouts: Sequence[Rollout], weights: np.ndarray, algorithm: Algorithm, reference: Policy | None
) -> list[Datum]:
    """Rows that carry gradient: all judged ones where there is a KL term, else those with an advantage."""
    kept = [(r, float(a)) for r, a in zip(rollouts, weights, strict=True) if a == a and (reference or abs(a) > 1e-8)]
    refs = reference.score([r for r, _ in kept]) if reference else [r.logprobs for r, _ in kept]
    rows = []
    for (r, a), ref in zip(kept, refs, strict=True):
        scale = 1.0 / len(r.completion_ids) if algorithm.aggregate == "mean" else 1.0
        old = spread(r, r.logprobs)
        rows.append(rollout_datum(r, advantage=a, old_logprob=old, ref_logprob=spread(r, ref), scale=scale))
    return rows


def spread(rollout: Rollout, values: Sequence[float]) -> np.ndarray:
    """Values of the policy's own tokens laid over all of the rollout's tokens, 0 elsewhere."""
    out = np.zeros(len(rollout.ids), np.float32)
    out[np.array(rollout.authors) == Author.POLICY] = values
    return out


def step_metrics(judged: Sequence[Judged], rewards_G_S: np.ndarray) -> dict[str, float]:
    return {
        "reward": float(np.nanmean(rewards_G_S)),
        "informative": float(np.mean([len({r for r in group if r == r}) > 1 for group in rewards_G_S.tolist()])),
        "length": float(np.mean([len(j.rollout.completion_ids) for j in judged])),
        "truncated": float(np.mean([j.rollout.finish == "length" for j in judged])),
        "invalid": float(np.mean([j.verdict.invalid is not None for j in judged])),
    }
