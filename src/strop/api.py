"""The Python face: the verbs that `strop.NAME` gives."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from strop.data.rows import conversation, read_rows
from strop.errors import StropError
from strop.evals.evaluate import EvalConfig, Evaluation
from strop.evals.evaluate import evaluate as _evaluate
from strop.protocols import Task
from strop.recipe.config import explain, load_recipe
from strop.recipe.machine import keep_freed_memory
from strop.recipe.runner import run as _run
from strop.sampling.policy import Policy
from strop.tasks import task
from strop.train.kl import KLProbe
from strop.train.loop import StageDir
from strop.train.rl import RLConfig
from strop.train.rl import rl as _rl
from strop.train.sft import SFTConfig
from strop.train.sft import sft as _sft
from strop.types import Prompt, Rollout, Sampling

__all__ = ["evaluate", "load", "rl", "run", "sample", "sft", "task"]

Rows = str | Path | Iterable[Mapping[str, Any]]


def load(name: str | Path, device: str = "cpu", dtype: str = "float32") -> Policy:
    """A policy from `strop-nano`, a Hugging Face model directory, or a hub id."""
    keep_freed_memory()
    return Policy.load(name, device, dtype)


def sample(
    model: Policy | str | Path,
    prompts: str | Prompt | Sequence[str | Prompt],
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 128,
    seed: int = 0,
) -> list[list[Rollout]]:
    """`n` rollouts for each prompt, as a list per prompt."""
    policy = model if isinstance(model, Policy) else load(model)
    asked = [prompts] if isinstance(prompts, str | Prompt) else prompts
    questions = [p if isinstance(p, Prompt) else Prompt.user(p) for p in asked]
    return policy.sample(questions, Sampling(temperature, top_p, max_tokens, seed=seed), n)


def sft(
    model: Policy | str | Path, rows: Rows, out: str | Path | None = None, seed: int = 0, **settings: Any
) -> Policy:
    """Fine-tune on rows with `messages`, or `prompt` and `completion`; a file's or your own.

    Returns the trained policy; a policy that is passed in is trained in place. `out` saves it.
    Settings are those of a recipe's sft stage.
    """
    policy = model if isinstance(model, Policy) else load(model)
    name = str(rows) if isinstance(rows, str | Path) else "row"
    given = read_rows(rows) if isinstance(rows, str | Path) else rows
    conversations = [conversation(row, f"{name}:{i}") for i, row in enumerate(given, 1)]
    config = _config(SFTConfig, settings)
    with tempfile.TemporaryDirectory() as traces:
        _sft(policy, conversations, config, StageDir(Path(traces)), seed)
    return _saved(policy, out)


def rl(model: Policy | str | Path, task: Task, out: str | Path | None = None, seed: int = 0, **settings: Any) -> Policy:
    """Reinforcement learning on a task's training prompts, rewards being its verdicts.

    Returns the trained policy; a policy that is passed in is trained in place. `out` saves it.
    Settings are those of a recipe's rl stage.
    """
    policy = model if isinstance(model, Policy) else load(model)
    config = _config(RLConfig, settings)
    probe = None
    if config.kl_coef:
        probe = KLProbe(policy.copy(), task.prompts("dev")[:64], config.max_tokens)
    with tempfile.TemporaryDirectory() as traces:
        _rl(policy, task, config, StageDir(Path(traces)), seed, probe)
    return _saved(policy, out)


def evaluate(model: Policy | str | Path, task: Task, seed: int = 0, **settings: Any) -> Evaluation:
    """Greedy and sampled accuracy with intervals; `.rows(name, seed)` gives the result rows.

    Settings are those of a recipe's `evaluate` entry.
    """
    policy = model if isinstance(model, Policy) else load(model)
    return _evaluate(policy, task, _config(EvalConfig, {"task": task.name, **settings}), seed)


def run(recipe: str | Path, out: str | Path | None = None, set: Sequence[str] = ()) -> Path:
    """Run a bundled recipe or a YAML file; returns the run's directory, its report within."""
    return _run(load_recipe(recipe, set), None if out is None else Path(out))


def _config(kind: Any, settings: Mapping[str, Any]) -> Any:
    try:
        return kind(**settings)
    except ValidationError as error:
        raise StropError(explain(error, kind, kind.__name__)) from error


def _saved(policy: Policy, out: str | Path | None) -> Policy:
    if out is not None:
        policy.save(Path(out))
    return policy
