"""Run a recipe: do what the store lacks, then lay out the run directory with its report."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

import strop
from strop.evals.evaluate import EXTRACTIONS, Evaluation, compare, evaluate
from strop.ledger import Ledger
from strop.model.renderer import Renderer
from strop.recipe.config import Recipe
from strop.recipe.plan import Plan, PlannedEval, PlannedStage, make_plan
from strop.recipe.report import write_report
from strop.recipe.show import Console
from strop.recipe.store import write_atomically
from strop.types import Author, Judged

SAMPLES_SHOWN = 12  # per evaluation and manner of sampling, in the report's browser


def run(recipe: Recipe, out: Path | None = None, console: Console | None = None) -> Path:
    """Bring `out` (runs/NAME if not given) up to date with the recipe and return it.

    Only what the store lacks is computed; a killed run goes on from its last saved step.
    """
    console, out = console or Console(), out or Path("runs") / recipe.name
    plan = make_plan(recipe)
    if plan.todo:
        _compute(plan, console)
    _publish(plan, out, console)
    return out


def _compute(plan: Plan, console: Console) -> None:
    from strop.recipe.stages import run_stage

    plan.machine.prepare()
    for stage in plan.stages.values():
        if not stage.done:
            run_stage(stage, plan, console)
        for planned in plan.evals:
            if planned.stage == stage.name and not planned.artifact.done:
                _evaluate(planned, stage, plan, console)


def _evaluate(planned: PlannedEval, stage: PlannedStage, plan: Plan, console: Console) -> None:
    """Measure one stage's model on one task; leave rows, per-prompt scores and samples in the store."""
    from strop.recipe.stages import make_task
    from strop.sampling.policy import Policy

    config, began = plan.recipe.evaluate[planned.index], time.perf_counter()
    assert stage.model is not None
    policy = Policy.load(stage.model, plan.machine.device, plan.machine.dtype)
    if policy.renderer.without_template:
        console.say(f"{stage.name}: the model has no chat template; using plain Question:/Answer: text")
    with console.evaluation(f"{stage.name} {config.task}") as progress:
        result = evaluate(policy, make_task(config), config, plan.recipe.seed, progress)
    seconds = time.perf_counter() - began
    artifact = planned.artifact
    samples = [json.dumps(s) for s in show_samples(result, policy.renderer)]
    write_atomically(artifact.path / "samples.jsonl", "\n".join(samples) + "\n")
    write_atomically(artifact.path / "prompts.jsonl", "\n".join(json.dumps(r) for r in per_prompt(result)) + "\n")
    rates = {m: {e: clean(result.rates(m, e)) for e in EXTRACTIONS} for m in result.metrics()}
    ledger = replace(result.ledger, seconds=seconds)
    rows = result.rows(stage.name, plan.recipe.seed)
    artifact.finish({"rows": rows, "rates": rates, "ledger": ledger.as_dict()})
    strict = {r["metric"]: r["value"] for r in rows if r["extraction"] == "strict"}
    told = ", ".join(f"{m} {v:.3f}" for m, v in strict.items() if v is not None)
    console.say(f"{stage.name}: {config.task} {told} ({seconds:.0f} s)")


def clean(rates: Sequence[float]) -> list[float | None]:
    """NaN is no JSON; a prompt without a valid verdict is null."""
    return [None if math.isnan(r) else r for r in rates]


def per_prompt(result: Evaluation) -> list[dict[str, Any]]:
    """Every answer with its verdict, so that anyone can recompute the scores."""

    def told(judged: Judged) -> dict[str, Any]:
        verdict = judged.verdict
        out = {"text": judged.rollout.text, "finish": judged.rollout.finish, "correctness": verdict.correctness}
        return {**out, **verdict.parts, **({"invalid": verdict.invalid} if verdict.invalid else {})}

    return [
        {
            "id": prompt.id, "row": prompt.row, "question": prompt.messages[-1].content, "gold": prompt.answer,
            "extras": dict(prompt.extras), "greedy": told(result.greedy[i]),
            "sampled": [told(j) for j in result.sampled[i]],
            "best": [told(j) for j in result.best[i]] if result.best is not result.sampled and result.best else [],
        }
        for i, prompt in enumerate(result.prompts)
    ]  # fmt: skip


def show_samples(result: Evaluation, renderer: Renderer) -> list[dict[str, Any]]:
    """A few rollouts with tokens, mask and verdict, for the report."""
    chosen = [("greedy", j) for j in result.greedy[:SAMPLES_SHOWN]]
    chosen += [("sampled", group[0]) for group in result.sampled[:SAMPLES_SHOWN]]
    return [
        {
            "task": result.task, "split": result.suite["split"], "how": how,
            "question": judged.rollout.prompt.messages[-1].content, "gold": judged.rollout.prompt.answer,
            "tokens": renderer.pieces(judged.rollout.ids),
            "learnt": [int(a is Author.POLICY) for a in judged.rollout.authors],
            "finish": judged.rollout.finish, "text": judged.rollout.text,
            "correctness": judged.verdict.correctness, "invalid": judged.verdict.invalid,
            "strict": judged.score("strict"), "flexible": judged.score("flexible"),
        }
        for how, judged in chosen
    ]  # fmt: skip


def collect(plan: Plan) -> dict[str, Any]:
    """The content of results.json, from what lies in the store."""
    stages: dict[str, Any] = {}
    for name, stage in plan.stages.items():
        record: dict[str, Any] = {"seconds": 0.0, "ledger": Ledger().as_dict(), "kl": None}
        if stage.kind != "base":
            record = {k: stage.artifact.record()[k] for k in record}
        stages[name] = {"kind": stage.kind, "key": stage.artifact.key, "from": stage.parent, **record}
    evaluations: list[dict[str, Any]] = []
    spent: dict[str, Ledger] = {}
    records: dict[tuple[str, int], dict[str, Any]] = {}
    for planned in plan.evals:
        record = records[planned.stage, planned.index] = planned.artifact.record()
        # The store knows a model by its key; the rows name the stage as this recipe calls it.
        evaluations += [{**row, "model": planned.stage} for row in record["rows"]]
        spent[planned.stage] = spent.get(planned.stage, Ledger()) + Ledger(**record["ledger"])
    return {
        "name": plan.recipe.name, "version": strop.__version__, "model": plan.recipe.model, "seed": plan.recipe.seed,
        **plan.machine.as_dict(), "stages": stages, "evaluations": evaluations,
        "comparisons": comparisons(plan, records),
        "evaluation_ledger": {name: ledger.as_dict() for name, ledger in spent.items()},
    }  # fmt: skip


def comparisons(plan: Plan, records: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Paired differences of every stage and the one that it started from."""
    out = []
    for (name, index), record in records.items():
        parent = plan.stages[name].parent
        if parent is None:
            continue
        before = records[parent, index]["rates"]
        for metric, by_extraction in record["rates"].items():
            for extraction, rates in by_extraction.items():
                labels = {
                    "task": record["rows"][0]["task"], "metric": metric, "extraction": extraction,
                    "after": name, "before": parent,
                }  # fmt: skip
                pair = [[math.nan if r is None else r for r in x] for x in (rates, before[metric][extraction])]
                out.append(compare(pair[0], pair[1], labels))
    return out


def _publish(plan: Plan, out: Path, console: Console) -> None:
    """Lay out the run directory; leave it alone where it already says the same."""
    text = json.dumps(collect(plan), indent=1) + "\n"
    results, report = out / "results.json", out / "report.html"
    if results.exists() and results.read_text() == text and report.exists() and (out / "model").exists():
        console.say(f"nothing to do; the report is {report}")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(
        out / "recipe.yaml", yaml.safe_dump(plan.recipe.model_dump(mode="json", by_alias=True), sort_keys=False)
    )
    for folder in ("metrics", "samples", "evaluations"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir()
    for stage in plan.stages.values():
        if (metrics := stage.artifact.path / "metrics.jsonl").exists():
            shutil.copy(metrics, out / "metrics" / f"{stage.name}.jsonl")
    for planned in plan.evals:
        samples = (planned.artifact.path / "samples.jsonl").read_text()
        with (out / "samples" / f"{planned.stage}.jsonl").open("a") as file:
            file.write(samples)
        name = f"{planned.stage}-{planned.index}.jsonl"
        shutil.copy(planned.artifact.path / "prompts.jsonl", out / "evaluations" / name)
    assert plan.final.model is not None
    shutil.rmtree(out / "model", ignore_errors=True)
    shutil.copytree(plan.final.model, out / "model")
    write_atomically(results, text)
    write_report(out)
    console.say(f"the report is {report}; the model is {out / 'model'}")


def dry_run(recipe: Recipe, console: Console) -> None:
    """Print what a run would do and why, without doing it."""
    plan = make_plan(recipe)
    table = Table(title=f"{recipe.name}: what a run would do", title_justify="left")
    for heading in ("what", "kind", "key", "state"):
        table.add_column(heading)
    for stage in plan.stages.values():
        state = "done" if stage.done else "resumes" if stage.artifact.started else "runs: not in the store"
        if stage.kind == "base":
            state = f"given: {stage.model}"
        elif stage.done:
            state += f", took {stage.artifact.record()['seconds']:.0f} s"
        table.add_row(stage.name, stage.kind, stage.artifact.key, state)
    for planned in plan.evals:
        state = "done" if planned.artifact.done else "runs: not in the store"
        task = recipe.evaluate[planned.index].task
        table.add_row(f"{planned.stage} on {task}", "eval", planned.artifact.key, state)
    console.table(table)
