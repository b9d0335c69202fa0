"""Sample, score, report: a policy's accuracy on a task, greedy and sampled, with intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from strop.errors import StropError
from strop.ledger import Ledger
from strop.protocols import Task
from strop.sampling.policy import Policy
from strop.stats import Interval, clustered, pass_at_k, wilson
from strop.tasks.base import judge_all
from strop.types import Judged, Prompt, Sampling, content_hash

EXTRACTIONS = ("strict", "flexible")
SEED = 5 << 60  # evaluation draws: apart from every training seed


class EvalConfig(BaseModel):
    """What to measure on one task."""

    model_config = ConfigDict(extra="forbid")

    task: str = Field(description="a registered task, or path/to/file.py:ClassName")
    data: str | None = Field(None, description="rows for tasks that read a file, such as gsm8k")
    options: dict = Field(default_factory=dict, description="further options of the task")
    split: Literal["train", "dev", "test"] = "test"
    n: int = Field(600, gt=0, description="prompts at most")
    samples: int = Field(8, gt=0, description="samples per prompt at temperature 1; pass@k for k = samples")
    max_tokens: int = Field(96, gt=0)
    temperatures: list[float] = Field([0.3, 0.6, 1.0], description="candidates for the best one; none: not looked for")
    tune_n: int = Field(200, gt=0, description="dev prompts that the best temperature is chosen on")


@dataclass(frozen=True)
class Evaluation:
    """Everything a policy did on one task. `draws` holds, for each metric, judged rollouts per prompt."""

    task: str
    suite: dict[str, Any]
    prompts: list[Prompt]
    draws: dict[str, list[list[Judged]]]
    temperatures: dict[str, float]
    ledger: Ledger

    def rates(self, metric: str, extraction: str) -> list[float]:
        """A number per prompt, of valid verdicts (none: NaN): its mean score, or pass@k as in Chen et al. 2021."""

        def rate(scores: list[float]) -> float:
            if metric in ("greedy", "pass@1", "pass@1@best_t"):
                return sum(scores) / len(scores)
            return pass_at_k(sum(s == 1 for s in scores), len(scores), len(scores))

        valid = [[s for j in group if (s := j.score(extraction)) is not None] for group in self.draws[metric]]
        return [rate(scores) if scores else math.nan for scores in valid]

    def interval(self, metric: str, extraction: str) -> Interval:
        """Wilson's interval; where a prompt has several draws, it is the cluster."""
        rates = [r for r in self.rates(metric, extraction) if r == r]
        several = metric in ("pass@1", "pass@1@best_t") and len(self.draws[metric][0]) > 1
        return clustered(rates, len(self.draws[metric][0])) if several else wilson(sum(rates), len(rates))

    def rows(self, model: str, seed: int) -> list[dict[str, Any]]:
        """The result rows of `strop eval --json` and `results.json`."""
        out = []
        for metric, extraction in ((m, e) for m in self.draws for e in EXTRACTIONS):
            value, low, high = self.interval(metric, extraction)
            judged = [j for group in self.draws[metric] for j in group]
            truncated = sum(j.rollout.finish == "length" for j in judged) / len(judged)
            invalid = sum(j.verdict.invalid is not None for j in judged)
            row = {"model": model, "task": self.task, "split": self.suite["split"], "n": len(self.prompts)}
            row |= {"metric": metric, "value": value if value == value else None, "low": low, "high": high}
            row |= {"extraction": extraction, "seed": seed, "suite_hash": content_hash(self.suite)}
            out.append(row | {"truncated": truncated, "invalid": invalid, "temperature": self.temperatures[metric]})
        return out


def evaluate(
    policy: Policy, task: Task, config: EvalConfig, seed: int = 0, progress: Callable[[int], None] = lambda new: None
) -> Evaluation:
    """Sample `task` greedily, at temperature 1 and at the policy's own best (by strict pass@1 on `dev`), and judge.
    Raises StropError when the split has no prompts or over 5 % of the verdicts are invalid."""
    prompts = list(task.prompts(config.split))[: config.n]
    if not prompts:
        raise StropError(f"task {task.name}: split {config.split!r} has no prompts")
    spent: list[Ledger] = []

    def run(asked: Sequence[Prompt], temperature: float, n: int, place: int) -> list[list[Judged]]:
        draws = SEED + (seed << 30) + (place << 22)  # `place` keeps the draws of different temperatures apart
        sampling = Sampling(temperature, max_tokens=config.max_tokens, seed=draws)
        judged = judge_all(task, [r for group in policy.sample(asked, sampling, n) for r in group])
        spent.extend(j.rollout.ledger for j in judged)
        progress(len(judged))
        return [judged[i : i + n] for i in range(0, len(judged), n)]

    sampled = run(prompts, 1.0, config.samples, 1)
    draws = {"greedy": run(prompts, 0.0, 1, 0), "pass@1": sampled}
    temperatures = {"greedy": 0.0, "pass@1": 1.0}
    if config.temperatures:
        dev = list(task.prompts("dev"))[: config.tune_n]
        tuned = {t: mean_score(run(dev, t, 2, 2 + i)) for i, t in enumerate(config.temperatures)}
        best = max(tuned, key=lambda t: tuned[t])
        draws["pass@1@best_t"] = sampled if best == 1.0 else run(prompts, best, config.samples, 100)
        temperatures["pass@1@best_t"] = best
    if config.samples > 1:
        draws[f"pass@{config.samples}"], temperatures[f"pass@{config.samples}"] = sampled, 1.0
    suite = {**config.model_dump(), "prompts": content_hash([p.id for p in prompts])}
    return Evaluation(task.name, suite, prompts, draws, temperatures, sum(spent, Ledger()))


def mean_score(groups: Sequence[Sequence[Judged]]) -> float:
    """Mean strict score of the valid verdicts; 0 where there are none."""
    scores = [s for group in groups for j in group if (s := j.score("strict")) is not None]
    return sum(scores) / max(1, len(scores))
