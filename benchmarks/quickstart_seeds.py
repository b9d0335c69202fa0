"""What each stage of the quickstart bought, over several seeds: the table in docs/results.md.

    python benchmarks/quickstart_seeds.py 0 1 2

Runs the recipe once per seed (or takes it from the store), then recomputes every score from the raw answers in
runs/seeds/SEED/evaluations. A seed changes the draws of SFT's order, RL and sampling; the test prompts are the same, so
differences are paired by prompt, averaged over the seeds, with a bootstrap interval over prompts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import strop
from strop.stats import paired_difference, wilson

TASKS = ("arithmetic", "rewrite")
METRICS = ("greedy", "pass@1", "pass@1@best_t", "pass@8")
COMPARED = (  # after, its metric, before, its metric
    ("sft", "greedy", "base", "greedy"),
    ("sft", "pass@1@best_t", "base", "pass@1@best_t"),
    ("rl", "greedy", "sft", "greedy"),
    ("rl", "pass@1", "sft", "pass@1"),
    ("rl", "pass@1", "sft", "pass@1@best_t"),
    ("rl", "pass@1@best_t", "sft", "pass@1@best_t"),
    ("rl", "pass@8", "sft", "pass@8"),
)


def rates(run: Path, stage: str, task: int, metric: str) -> list[float]:
    """Each prompt's score, strict, from the raw answers. pass@1@best_t is pass@1 where the best temperature is 1."""
    rows = [json.loads(line) for line in (run / "evaluations" / f"{stage}-{task}.jsonl").open()]
    out = []
    for row in rows:
        drawn = row.get("pass@1" if metric == "pass@8" else metric, row["pass@1"])
        scores = [answer["correctness"] for answer in drawn]
        out.append(float(max(scores)) if metric == "pass@8" else sum(scores) / len(scores))
    return out


def mean(columns: list[list[float]]) -> list[float]:
    """Each prompt's mean over the seeds."""
    return [sum(column) / len(column) for column in zip(*columns, strict=True)]


def main(seeds: list[int]) -> None:
    runs = [strop.run("quickstart", out=f"runs/seeds/{seed}", set=[f"seed={seed}"]) for seed in seeds]
    results = [json.loads((run / "results.json").read_text()) for run in runs]
    for task, name in enumerate(TASKS):
        print(f"\n{name}, strict, mean of seeds {seeds}\n\n| stage | {' | '.join(METRICS)} |")
        print("|---" * (len(METRICS) + 1) + "|")
        for stage in ("base", "sft", "rl"):
            scores = [mean([rates(run, stage, task, metric) for run in runs]) for metric in METRICS]
            cells = [f"{100 * wilson(sum(s), len(s)).value:.1f}" for s in scores]
            print(f"| {stage} | {' | '.join(cells)} |")
        print("\n| difference | points | 95 % interval | by seed |\n|---|---|---|---|")
        for after, metric, before, other in COMPARED:
            pairs = [(rates(run, after, task, metric), rates(run, before, task, other)) for run in runs]
            d = paired_difference(mean([a for a, _ in pairs]), mean([b for _, b in pairs]))
            each = ", ".join(f"{100 * paired_difference(a, b).value:+.1f}" for a, b in pairs)
            label = f"{after} {metric} − {before} {other}"
            print(f"| {label} | {100 * d.value:+.1f} | {100 * d.low:+.1f} to {100 * d.high:+.1f} | {each} |")
    print("\n| stage | KL, nats per completion, by seed | seconds, by seed |\n|---|---|---|")
    for stage in ("sft", "rl"):
        kl = ", ".join(f"{r['stages'][stage]['kl']:.2f}" for r in results)
        seconds = ", ".join(f"{r['stages'][stage]['seconds']:.0f}" for r in results)
        print(f"| {stage} | {kl} | {seconds} |")


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
