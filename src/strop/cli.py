"""The command line. `strop run quickstart` is the place to start."""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

import strop
from strop.errors import StropError
from strop.protocols import Task

HELP = "Post-train a model, and see what each stage bought."
app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
tasks_app = typer.Typer(help="The problems that Strop can check.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")

Model = Annotated[str, typer.Argument(help="strop-nano, a Hugging Face model directory, or a hub id")]
TaskName = Annotated[str, typer.Argument(help="a task's name, or path/to/file.py:ClassName")]
Data = Annotated[Optional[Path], typer.Option(help="rows for a task that reads a file")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="machine-readable output, an object a line")]
Seed = Annotated[int, typer.Option(min=0, max=999_999)]
Positive = Annotated[int, typer.Option(min=1)]


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"strop {strop.__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def root(
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True)] = False,
) -> None: ...


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="a bundled recipe (quickstart, nano-base) or a YAML file")],
    set: Annotated[list[str], typer.Option(help="change a key: seed=1, rl.steps=40, evaluate.0.n=200")] = [],  # noqa: B006
    out: Annotated[Optional[Path], typer.Option(help="run directory; runs/NAME if not given")] = None,  # noqa: UP045
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and why; do nothing")] = False,
) -> None:
    """Run a recipe. What the store already holds is not computed again; a killed run goes on where it was."""
    from strop.recipe import runner
    from strop.recipe.config import load_recipe
    from strop.recipe.show import Console

    if dry_run:
        runner.dry_run(load_recipe(recipe, set), Console())
    else:
        runner.run(load_recipe(recipe, set), out, Console())


@app.command("eval")
def eval_command(
    model: Model,
    task: Annotated[str, typer.Option(help="a task's name, or path/to/file.py:ClassName")],
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, dev or test")] = "test",
    limit: Annotated[int, typer.Option(min=1, help="prompts at most")] = 600,
    samples: Annotated[int, typer.Option(min=1, help="samples per prompt; pass@k for that k")] = 8,
    max_tokens: Positive = 256,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a model on a task: greedy, pass@1, pass@k, strict and flexible, with 95 % intervals."""
    from strop.api import evaluate, load

    problems = _find_task(task, data)
    settings = {"n": limit, "samples": samples, "max_tokens": max_tokens, "split": split, "temperatures": []}
    rows = evaluate(load(model), problems, seed, **settings).rows(model, seed)
    if as_json:
        typer.echo("\n".join(map(json.dumps, rows)))
        return
    typer.echo(f"{model} on {problems.name}, {split}, n = {rows[0]['n']}")
    typer.echo(f"{'metric':<14}{'extraction':<12}{'value':>7}   {'95 % interval':<16}{'truncated':>9}{'invalid':>9}")
    for row in rows:
        value = "–" if row["value"] is None else f"{row['value']:.3f}"
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        start = f"{row['metric']:<14}{row['extraction']:<12}{value:>7}   {interval:<16}"
        typer.echo(f"{start}{row['truncated']:>9.1%}{row['invalid']:>9}")


@app.command("sample")
def sample_command(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="the question; - reads standard input")],
    n: Annotated[int, typer.Option("-n", min=1, help="samples")] = 1,
    raw: Annotated[bool, typer.Option("--raw", help="continue the text as it is, without a chat template")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    max_tokens: Positive = 128,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Ask a model; --json adds token ids, log-probabilities, the reason to finish, and the cost."""
    from strop.api import load, sample

    policy, text = load(model), sys.stdin.read() if prompt == "-" else prompt
    if raw:
        policy.renderer = policy.renderer.raw()
    for rollout in sample(policy, text, n, temperature, top_p, max_tokens, seed)[0]:
        told: dict[str, Any] = {"text": rollout.text, "tokens": rollout.completion_ids, "logprobs": rollout.logprobs}
        told |= {"finish": rollout.finish, "ledger": rollout.ledger.as_dict()}
        typer.echo(json.dumps(told) if as_json else rollout.text)


@app.command("report")
def report_command(directory: Annotated[Path, typer.Argument(help="a run directory")]) -> None:
    """Write a run's report.html anew."""
    from strop.recipe.report import write_report

    typer.echo(write_report(directory))


@app.command()
def doctor() -> None:
    """Say what this machine has, and check that sampling and training agree on it."""
    import torch

    from strop.api import load, sample
    from strop.recipe.machine import available_cores
    from strop.recipe.store import home

    [[rollout]] = sample(policy := load("strop-nano"), "What is 17 + 25?")
    drift = max(abs(a - b) for a, b in zip(policy.score([rollout])[0], rollout.logprobs, strict=True))
    facts = {"strop": strop.__version__, "python": platform.python_version(), "torch": torch.__version__}
    facts |= {"cores": str(available_cores()), "store": str(home())}
    facts["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts["strop-nano"] = f"sampler and scorer differ by {drift:.0e} nats"
    for name, value in facts.items():
        typer.echo(f"{name:<12}{value}")
    if drift > 1e-4:
        raise StropError(f"sampler and scorer differ by {drift:.1e} nats per token on this machine; 1e-4 is allowed")


@tasks_app.command("list")
def tasks_list() -> None:
    """Every task, with the first line of its description."""
    from strop.tasks import base

    for name in base.task_names():
        typer.echo(f"{name:<14}{(base.find(name).__doc__ or '').strip().partition(chr(10))[0]}")


@tasks_app.command("show")
def tasks_show(name: TaskName, data: Data = None, limit: Positive = 3) -> None:
    """A few test problems of a task with their gold answers."""
    found = _find_task(name, data)
    for prompt in found.prompts("test")[:limit]:
        typer.echo(f"[{prompt.id}] {prompt.messages[-1].content}\n  gold: {found.gold(prompt)}\n")


@tasks_app.command("validate")
def tasks_validate(name: TaskName, data: Data = None, limit: Positive = 100) -> None:
    """Check that a task's golds score 1, and that refusals, garbage and nothing score 0."""
    from strop.tasks import validate

    wrong = validate(_find_task(name, data), limit=limit)
    if wrong:
        typer.echo("\n".join(wrong[:20]), err=True)
        raise StropError(f"task {name}: {len(wrong)} checks failed")
    typer.echo(f"task {name}: sound")


def _find_task(name: str, data: Path | None) -> Task:
    from strop.tasks import task

    return task(name, **({"data": str(data)} if data else {}))


def main() -> None:
    """Run a command. A StropError is one line on standard error and exit status 1; --debug shows its traceback."""
    debug = "--debug" in sys.argv  # accepted behind a command too, where people type it
    sys.argv = [word for word in sys.argv if word != "--debug"]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of long prompts, for one; Strop raises
    try:
        app()
    except StropError as error:
        if debug:
            raise
        print("strop:", *str(error).splitlines(), file=sys.stderr)  # a verifier's own words may have several lines
        raise SystemExit(1) from None
    except BrokenPipeError:  # `strop … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
