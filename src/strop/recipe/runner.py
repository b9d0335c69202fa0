"""Run a recipe: do what the store lacks, then lay out the run directory with its report."""

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

import strop
from strop.evals.evaluate import EXTRACTIONS, Evaluation, evaluate
from strop.ledger import Ledger
from strop.model.renderer import Renderer
from strop.recipe.config import Recipe
from strop.recipe.plan import Plan, PlannedEval, make_plan
from strop.recipe.report import write_report
from strop.recipe.show import Console
from strop.recipe.stages import load, make_task, run_stage
from strop.recipe.store import write_atomically
from strop.stats import paired_difference
from strop.types import Author, Judged

SAMPLES_SHOWN = 12  # per evaluation and manner of sampling, in the report's browser


def run(recipe: Recipe, out: Path | None = None, console: Console | None = None) -> Path:
    """Bring `out` (runs/NAME if not given) up to date with the recipe and return it: do only what the store lacks."""
    console, out, plan = console or Console(), out or Path("runs") / recipe.name, make_plan(recipe)
    if not plan.done:
        plan.machine.prepare()
        for stage in plan.stages.values():
            if not stage.done:
                run_stage(stage, plan, console)
            for planned in plan.evals:
                if planned.stage == stage.name and not planned.artifact.done:
                    measure(planned, plan, console)
    publish(plan, out, console)
    return out


def measure(planned: PlannedEval, plan: Plan, console: Console) -> None:
    """Evaluate one stage's model on one task; leave rows, per-prompt answers and samples in the store."""
    config, name, began = plan.recipe.evaluate[planned.index], planned.stage, time.perf_counter()
    policy = load(plan.stages[name].model, plan)
    if policy.renderer.without_template:
        console.say(f"{name}: the model has no chat template; using plain Question:/Answer: text")
    with console.evaluation(f"{name} {config.task}") as progress:
        result = evaluate(policy, make_task(config), config, plan.recipe.seed, progress)
    for file, rows in (("samples", shown(result, policy.renderer)), ("prompts", answers(result))):
        write_atomically(planned.artifact.path / f"{file}.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    rates = {m: {e: [None if r != r else r for r in result.rates(m, e)] for e in EXTRACTIONS} for m in result.draws}
    ledger = replace(result.ledger, seconds=time.perf_counter() - began)
    rows = result.rows(name, plan.recipe.seed)
    planned.artifact.finish({"rows": rows, "rates": rates, "ledger": ledger.as_dict()})
    told = [f"{r['metric']} {r['value']:.3f}" for r in rows if r["extraction"] == "strict" and r["value"] is not None]
    console.say(f"{name}: {config.task} {', '.join(told)} ({ledger.seconds:.0f} s)")


def answers(result: Evaluation) -> list[dict[str, Any]]:
    """Every prompt with its answers and verdicts, so that anyone can recompute the scores."""
    out = []
    for i, prompt in enumerate(result.prompts):
        row = {"id": prompt.id, "row": prompt.row, "question": prompt.messages[-1].content, "gold": prompt.answer}
        row["extras"] = dict(prompt.extras)
        # pass@k is made of pass@1's draws, and so may be the best temperature's: each stands once.
        kept = {m: d[i] for m, d in result.draws.items() if m == "pass@1" or d is not result.draws["pass@1"]}
        for metric, draws in kept.items():
            row[metric] = [{"text": j.rollout.text, "finish": j.rollout.finish, **asdict(j.verdict)} for j in draws]
        out.append(row)
    return out


def shown(result: Evaluation, renderer: Renderer) -> list[dict[str, Any]]:
    """A few rollouts with tokens, mask and verdict, for the report."""

    def told(how: str, judged: Judged) -> dict[str, Any]:
        rollout, verdict = judged.rollout, judged.verdict
        row = {"task": result.task, "split": result.suite["split"], "how": how, "finish": rollout.finish}
        row |= {"question": rollout.prompt.messages[-1].content, "gold": rollout.prompt.answer, "text": rollout.text}
        row |= {"tokens": renderer.pieces(rollout.ids), "learnt": [int(a is Author.POLICY) for a in rollout.authors]}
        row |= {"correctness": verdict.correctness, "invalid": verdict.invalid}
        return {**row, **{extraction: judged.score(extraction) for extraction in EXTRACTIONS}}

    manners = (("greedy", "greedy"), ("sampled", "pass@1"))
    return [told(how, group[0]) for how, metric in manners for group in result.draws[metric][:SAMPLES_SHOWN]]


def collect(plan: Plan) -> dict[str, Any]:
    """The content of results.json, from what lies in the store."""
    nothing: dict[str, Any] = {"seconds": 0.0, "ledger": Ledger().as_dict(), "kl": None}
    stages = {}
    for name, stage in plan.stages.items():
        record = nothing if stage.kind == "base" else stage.artifact.record()
        told = {key: record[key] for key in nothing}
        stages[name] = {"kind": stage.kind, "key": stage.artifact.key, "from": stage.parent, **told}
    records = {(planned.stage, planned.index): planned.artifact.record() for planned in plan.evals}
    spent: dict[str, Ledger] = {}
    for (name, _), record in records.items():
        spent[name] = spent.get(name, Ledger()) + Ledger(**record["ledger"])
    recipe = plan.recipe
    head = {"name": recipe.name, "version": strop.__version__, "model": recipe.model, "seed": recipe.seed}
    # The store knows a model by its key; the rows name the stage as this recipe calls it.
    rows = [{**row, "model": name} for (name, _), record in records.items() for row in record["rows"]]
    told = {**head, **asdict(plan.machine), "stages": stages, "evaluations": rows}
    told["comparisons"] = comparisons(plan, records)
    return {**told, "evaluation_ledger": {name: ledger.as_dict() for name, ledger in spent.items()}}


def comparisons(plan: Plan, records: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Paired differences of every stage and the one that it started from, over prompts valid in both."""
    out = []
    for (name, index), record in records.items():
        parent = plan.stages[name].parent
        before = records[parent, index]["rates"] if parent else {}
        for metric, extraction in ((m, e) for m in before for e in EXTRACTIONS):
            both = zip(record["rates"][metric][extraction], before[metric][extraction], strict=True)
            pairs = [(a, b) for a, b in both if a is not None and b is not None]
            value, low, high = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
            row = {"task": record["rows"][0]["task"], "metric": metric, "extraction": extraction}
            row |= {"suite_hash": record["rows"][0]["suite_hash"], "after": name, "before": parent}
            out.append({**row, "n": len(pairs), "value": value, "low": low, "high": high})
    return out


def publish(plan: Plan, out: Path, console: Console) -> None:
    """Lay out the run directory; leave it alone where it already says the same."""
    text = json.dumps(collect(plan), indent=1) + "\n"
    results, report = out / "results.json", out / "report.html"
    if all(p.exists() for p in (results, report, out / "model")) and results.read_text() == text:
        console.say(f"nothing to do; the report is {report}")
        return
    for path in (results, report):  # so that a kill from here on leaves nothing that looks finished
        path.unlink(missing_ok=True)
    settings = plan.recipe.model_dump(mode="json", by_alias=True)
    write_atomically(out / "recipe.yaml", yaml.safe_dump(settings, sort_keys=False))
    for folder in ("metrics", "samples", "evaluations", "model"):
        shutil.rmtree(out / folder, ignore_errors=True)
    for stage in plan.stages.values():
        if (metrics := stage.artifact.path / "metrics.jsonl").exists():
            write_atomically(out / "metrics" / f"{stage.name}.jsonl", metrics.read_text())
        stored = [planned for planned in plan.evals if planned.stage == stage.name]
        samples = "".join((planned.artifact.path / "samples.jsonl").read_text() for planned in stored)
        write_atomically(out / "samples" / f"{stage.name}.jsonl", samples)
        for planned in stored:
            rows = (planned.artifact.path / "prompts.jsonl").read_text()
            write_atomically(out / "evaluations" / f"{stage.name}-{planned.index}.jsonl", rows)
        final = stage.model
    shutil.copytree(final, out / "model")
    write_atomically(results, text)
    write_report(out)
    console.say(f"the report is {report}; the model is {out / 'model'}")


def dry_run(recipe: Recipe, console: Console) -> None:
    """Print what a run would do and why, without doing it."""
    plan, table = make_plan(recipe), Table("what", "kind", "key", "state", title=f"{recipe.name}: a run would do")
    for stage in plan.stages.values():
        state = "runs: not in the store"
        if stage.kind == "base":
            state = f"given: {stage.model}"
        elif stage.done:
            state = f"done, took {stage.artifact.record()['seconds']:.0f} s"
        elif (stage.artifact.path / "resume.safetensors").exists():
            state = "goes on from its last saved step"
        table.add_row(stage.name, stage.kind, stage.artifact.key, state)
    for planned in plan.evals:
        state = "done" if planned.artifact.done else "runs: not in the store"
        table.add_row(f"{planned.stage} on {recipe.evaluate[planned.index].task}", "eval", planned.artifact.key, state)
    console.out.print(table)
