"""Sample, score, report: a policy's accuracy on a task, greedy and sampled, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from strop.errors import StropError
from strop.ledger import Ledger
from strop.protocols import Task
from strop.sampling.policy import Policy
from strop.stats import Interval, clustered, paired_difference, pass_at_k, wilson
from strop.tasks.base import judge_all
from strop.types import Judged, Prompt, Sampling, content_hash

EXTRACTIONS = ("strict", "flexible")
SEED = 5 << 50  # evaluation draws: apart from every training seed


class EvalConfig(BaseModel):
    """What to measure on one task."""

    model_config = ConfigDict(extra="forbid")

    task: str
    data: str | None = Field(None, description="rows for tasks that read a file, such as gsm8k")
    options: dict = Field(default_factory=dict, description="further options of the task")
    split: Literal["train", "dev", "test"] = "test"
    n: int = Field(600, gt=0, description="prompts")
    samples: int = Field(8, ge=1, description="samples per prompt at temperature 1; pass@k for k = samples")
    max_tokens: int = Field(96, gt=0)
    temperatures: list[float] = Field(
        [0.3, 0.6, 1.0], description="candidates for the model's own best temperature; none: not looked for"
    )
    tune_n: int = Field(200, gt=0, description="dev prompts that the best temperature is chosen on")


@dataclass
class Evaluation:
    """Everything a policy did on one task: judged rollouts by metric and prompt."""

    task: str
    prompts: list[Prompt]
    greedy: list[Judged]
    sampled: list[list[Judged]]
    best: list[list[Judged]]
    best_temperature: float | None
    ledger: Ledger
    suite: dict[str, Any] = field(default_factory=dict)

    def rates(self, metric: str, extraction: str) -> list[float]:
        """One number per prompt: its greedy score, mean sampled score, or pass@k. Invalid
        verdicts are left out of a mean; a prompt without any valid one is NaN."""
        k = len(self.sampled[0]) if self.sampled else 0
        groups = {"greedy": [[g] for g in self.greedy], "pass@1": self.sampled, "pass@1@best_t": self.best}
        out = []
        for group in groups.get(metric, self.sampled):
            scores = [s for s in (j.score(extraction) for j in group) if s is not None]
            if not scores:
                out.append(float("nan"))
            elif metric == f"pass@{k}" and k > 1:
                out.append(pass_at_k(sum(s == 1 for s in scores), len(scores), len(scores)))
            else:
                out.append(sum(scores) / len(scores))
        return out

    def metrics(self) -> list[str]:
        k = len(self.sampled[0]) if self.sampled else 0
        names = ["greedy", "pass@1"] if k else ["greedy"]
        if self.best:
            names.append("pass@1@best_t")
        return names + ([f"pass@{k}"] if k > 1 else [])

    def draws(self, metric: str) -> tuple[list[Judged], int]:
        """All judged rollouts behind a metric, and how many there are per prompt."""
        if metric == "greedy":
            return self.greedy, 1
        groups = self.best if metric == "pass@1@best_t" else self.sampled
        return [j for group in groups for j in group], len(groups[0])

    def interval(self, metric: str, extraction: str) -> Interval:
        """Wilson's interval, widened or narrowed for several draws per prompt."""
        rates = [r for r in self.rates(metric, extraction) if r == r]
        per_prompt = 1 if metric.startswith("pass@") and metric[5:].isdigit() and metric != "pass@1" else None
        samples = per_prompt or self.draws(metric)[1]
        return wilson(sum(rates), len(rates)) if samples == 1 else clustered(rates, samples)

    def rows(self, model: str, seed: int) -> list[dict[str, Any]]:
        """The result rows of `strop eval --json` and `results.json`."""
        out = []
        for metric in self.metrics():
            judged, _ = self.draws(metric)
            cut = sum(j.rollout.finish == "length" for j in judged) / len(judged)
            temperature = {"greedy": 0.0, "pass@1@best_t": self.best_temperature}.get(metric, 1.0)
            for extraction in EXTRACTIONS:
                value, low, high = self.interval(metric, extraction)
                out.append(
                    {
                        "model": model, "task": self.task, "split": self.suite["split"], "n": len(self.prompts),
                        "metric": metric, "value": value if value == value else None, "low": low, "high": high,
                        "extraction": extraction, "truncated": cut,
                        "invalid": sum(j.verdict.invalid is not None for j in judged),
                        "seed": seed, "suite_hash": content_hash(self.suite), "temperature": temperature,
                    }
                )  # fmt: skip
        return out


def evaluate(
    policy: Policy, task: Task, config: EvalConfig, seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> Evaluation:
    """Sample `task` greedily, at temperature 1 and at the policy's own best temperature, and judge.

    The best temperature is chosen on `dev` prompts by strict pass@1, never on the ones reported.
    Raises StropError when the split has no prompts or over 5 % of the verdicts are invalid.
    """
    prompts = list(task.prompts(config.split))[: config.n]
    if not prompts:
        raise StropError(f"task {task.name}: split {config.split!r} has no prompts")

    def run(asked: Sequence[Prompt], temperature: float, n: int, offset: int) -> list[list[Judged]]:
        sampling = Sampling(temperature, max_tokens=config.max_tokens, seed=SEED + (seed << 32) + (offset << 24))
        groups = policy.sample(asked, sampling, n)
        judged = iter(judge_all(task, [r for group in groups for r in group]))
        progress(len(asked) * n)
        return [list(islice(judged, n)) for _ in groups]

    greedy = run(prompts, 0.0, 1, 0)
    sampled = run(prompts, 1.0, config.samples, 1)
    tuned: dict[float, list[list[Judged]]] = {}
    if config.temperatures:
        dev = list(task.prompts("dev"))[: config.tune_n]
        tuned = {t: run(dev, t, 2, 2 + i) for i, t in enumerate(config.temperatures)}
    best_t = max(tuned, key=lambda t: _mean_strict(tuned[t])) if tuned else None
    best = [] if best_t is None else sampled if best_t == 1.0 else run(prompts, best_t, config.samples, 20)
    drawn_for_best = best if best is not sampled else []
    everything = [*greedy, *sampled, *drawn_for_best, *(g for groups in tuned.values() for g in groups)]
    return Evaluation(
        task=task.name,
        prompts=prompts,
        greedy=[group[0] for group in greedy],
        sampled=sampled,
        best=best,
        best_temperature=best_t,
        ledger=sum((j.rollout.ledger for group in everything for j in group), Ledger()),
        suite={**config.model_dump(), "prompts": content_hash([p.id for p in prompts])},
    )


def _mean_strict(groups: Sequence[Sequence[Judged]]) -> float:
    scores = [s for group in groups for s in (j.score("strict") for j in group) if s is not None]
    return sum(scores) / len(scores) if scores else 0.0


def compare(after: Sequence[float], before: Sequence[float], labels: dict[str, str]) -> dict[str, Any]:
    """A paired difference over the prompts that both models have a valid score for."""
    pairs = [(a, b) for a, b in zip(after, before, strict=True) if a == a and b == b]
    value, low, high = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    return {**labels, "n": len(pairs), "value": value, "low": low, "high": high}
