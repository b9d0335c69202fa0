"""The command line. `strop run quickstart` is the place to start."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

import strop
from strop.errors import StropError

app = typer.Typer(
    help="Post-train a model, and see what each stage bought.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
tasks_app = typer.Typer(help="The problems that Strop can check.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")

Model = Annotated[str, typer.Argument(help="strop-nano, a Hugging Face model directory, or a hub id")]
Data = Annotated[Optional[Path], typer.Option("--data", help="rows for a task that reads a file")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Seed = Annotated[int, typer.Option("--seed", min=0)]


def version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"strop {strop.__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
    version: Annotated[bool, typer.Option("--version", callback=version, is_eager=True)] = False,
) -> None:
    """Post-train a model, and see what each stage bought."""


@app.command("run")
def run_command(
    recipe: Annotated[str, typer.Argument(help="a bundled recipe (quickstart, nano-base) or a YAML file")],
    set: Annotated[Optional[list[str]], typer.Option("--set", help="change a key: stages.rl.steps=40, or rl.steps=40")] = None,  # noqa: E501,UP045
    out: Annotated[Optional[Path], typer.Option("--out", help="run directory; runs/NAME if not given")] = None,  # noqa: UP045
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and why; do nothing")] = False,
) -> None:  # fmt: skip
    """Run a recipe. What is already in the store is not computed again; a killed run goes on."""
    from strop.recipe import runner
    from strop.recipe.config import load_recipe
    from strop.recipe.show import Console

    loaded = load_recipe(recipe, set or ())
    if dry_run:
        runner.dry_run(loaded, Console())
    else:
        runner.run(loaded, out, Console())


@app.command("eval")
def eval_command(
    model: Model,
    task: Annotated[str, typer.Option("--task", help="a task's name, or path/to/file.py:ClassName")],
    data: Data = None,
    split: Annotated[str, typer.Option("--split", help="train, dev or test")] = "test",
    limit: Annotated[int, typer.Option("--limit", min=1, help="prompts at most")] = 600,
    samples: Annotated[int, typer.Option("--samples", min=1, help="samples per prompt; pass@k for that k")] = 8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 256,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a model on a task: greedy, pass@1, pass@k, strict and flexible, with 95 % intervals."""
    from strop.api import evaluate, load
    from strop.tasks import task as find_task

    problems = find_task(task, **({"data": str(data)} if data else {}))
    if split not in ("train", "dev", "test"):
        raise StropError(f"--split {split}: use train, dev or test")
    settings = {"n": limit, "samples": samples, "max_tokens": max_tokens, "split": split, "temperatures": []}
    rows = evaluate(load(model), problems, seed, **settings).rows(model, seed)
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    columns = {
        "metric": lambda r: r["metric"], "extraction": lambda r: r["extraction"],
        "value": lambda r: "–" if r["value"] is None else f"{r['value']:.3f}",
        "95 % interval": lambda r: f"{r['low']:.3f} to {r['high']:.3f}",
        "truncated": lambda r: f"{r['truncated']:.1%}", "invalid": lambda r: str(r["invalid"]),
    }  # fmt: skip
    show_table(f"{model} on {problems.name}, {split}, n = {rows[0]['n']}", columns, rows)


@app.command("sample")
def sample_command(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="the question; - reads standard input")],
    n: Annotated[int, typer.Option("-n", min=1, help="samples")] = 1,
    raw: Annotated[bool, typer.Option("--raw", help="continue the text as it is, without a chat template")] = False,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0)] = 1.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 128,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Ask a model, and see tokens, log-probabilities and cost with --json."""
    from strop.api import load, sample

    text = sys.stdin.read() if prompt == "-" else prompt
    policy = load(model)
    if raw:
        policy.renderer = policy.renderer.raw()
    [rollouts] = sample(policy, text, n, temperature, top_p, max_tokens, seed)
    for rollout in rollouts:
        if as_json:
            fields = {
                "text": rollout.text, "tokens": rollout.completion_ids, "logprobs": rollout.logprobs,
                "finish": rollout.finish, "ledger": rollout.ledger.as_dict(),
            }  # fmt: skip
            typer.echo(json.dumps(fields))
        else:
            typer.echo(rollout.text)


@app.command("report")
def report_command(directory: Annotated[Path, typer.Argument(help="a run directory")]) -> None:
    """Write a run's report.html anew."""
    from strop.recipe.report import write_report

    typer.echo(write_report(directory))


@app.command("doctor")
def doctor_command() -> None:
    """Say what this machine has, and check that sampling and training agree on it."""
    import torch

    from strop.api import load
    from strop.recipe.machine import available_cores
    from strop.recipe.store import home
    from strop.types import Prompt, Sampling

    policy = load("strop-nano")
    prompt = Prompt.user("What is 17 + 25?")
    [[rollout]] = policy.sample([prompt], Sampling(max_tokens=48))
    [scored] = policy.score([rollout])
    drift = max(abs(a - b) for a, b in zip(scored, rollout.logprobs, strict=True))
    facts = {
        "strop": strop.__version__, "python": platform.python_version(), "torch": torch.__version__,
        "cores": available_cores(), "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "store": str(home()), "strop-nano": f"samples; sampler and scorer differ by {drift:.1e} nats",
    }  # fmt: skip
    for name, value in facts.items():
        typer.echo(f"{name:<12}{value}")
    if drift > 1e-4:
        raise StropError(f"sampler and scorer differ by {drift:.1e} nats per token on this machine; 1e-4 is allowed")


@tasks_app.command("list")
def tasks_list() -> None:
    """Every task, with the first line of its description."""
    from strop.tasks import task_names
    from strop.tasks.base import describe

    for name in task_names():
        typer.echo(f"{name:<14}{describe(name)}")


@tasks_app.command("show")
def tasks_show(name: str, data: Data = None, limit: Annotated[int, typer.Option("--limit", min=1)] = 3) -> None:
    """A few problems of a task with their gold answers."""
    from strop.tasks import task as find_task

    found = find_task(name, **({"data": str(data)} if data else {}))
    for prompt in found.prompts("test")[:limit]:
        typer.echo(f"[{prompt.id}] {prompt.messages[-1].content}\n  gold: {found.gold(prompt)}\n")


@tasks_app.command("validate")
def tasks_validate(name: str, data: Data = None, limit: Annotated[int, typer.Option("--limit", min=1)] = 100) -> None:
    """Check that a task's golds score 1, and that refusals, garbage and nothing score 0."""
    from strop.tasks import task as find_task
    from strop.tasks import validate

    found = find_task(name, **({"data": str(data)} if data else {}))
    wrong = validate(found, limit=limit)
    for line in wrong[:20]:
        typer.echo(line, err=True)
    if wrong:
        raise StropError(f"task {name}: {len(wrong)} checks failed")
    typer.echo(f"task {name}: sound")


def show_table(title: str, columns: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """A table for people; `columns` maps a heading to the text of its cell."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in columns:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    Console().print(table)


def main() -> None:
    """Run a command; an error is one line on standard error and exit status 1, a traceback only
    with --debug."""
    try:
        app()
    except StropError as error:
        if "--debug" in sys.argv:
            raise
        print(f"strop: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except BrokenPipeError:  # `strop … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
