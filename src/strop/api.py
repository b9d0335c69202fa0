"""The Python face: the verbs that `strop.NAME` gives. Training changes a policy that is passed in; `out` saves it."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from strop.data.rows import conversation, read_rows
from strop.errors import StropError
from strop.evals import evaluate as evals
from strop.protocols import Task
from strop.recipe import runner
from strop.recipe.config import explain, load_recipe
from strop.recipe.machine import keep_freed_memory
from strop.sampling.policy import Policy
from strop.tasks import task
from strop.train import rl as _rl
from strop.train import sft as _sft
from strop.train.kl import KLProbe
from strop.train.loop import Stage
from strop.types import Prompt, Rollout, Sampling

__all__ = ["evaluate", "load", "rl", "run", "sample", "sft", "task"]

Model = Policy | str | Path
Rows = str | Path | Iterable[Mapping[str, Any]]


def load(name: str | Path, device: str = "cpu", dtype: str = "float32") -> Policy:
    """A policy from `strop-nano`, a Hugging Face model directory, or a hub id."""
    keep_freed_memory()
    return Policy.load(name, device, dtype)


def sample(
    model: Model, prompts: str | Prompt | Sequence[str | Prompt], n: int = 1, temperature: float = 1.0,
    top_p: float = 1.0, max_tokens: int = 128, seed: int = 0,
) -> list[list[Rollout]]:  # fmt: skip
    """`n` rollouts for each prompt, as a list per prompt."""
    asked = [prompts] if isinstance(prompts, str | Prompt) else prompts
    questions = [p if isinstance(p, Prompt) else Prompt.user(p) for p in asked]
    return _policy(model).sample(questions, Sampling(temperature, top_p, max_tokens, seed=seed), n)


def sft(model: Model, rows: Rows, out: str | Path | None = None, seed: int = 0, **settings: Any) -> Policy:
    """Fine-tune, in place, on rows with `messages`, or `prompt` and `completion`; settings are an sft stage's."""
    policy, config = _policy(model), _config(_sft.SFTConfig, settings)
    name, given = (str(rows), read_rows(rows)) if isinstance(rows, str | Path) else ("row", rows)
    conversations = [conversation(row, f"{name}:{i}") for i, row in enumerate(given, 1)]
    return _trained(policy, out, seed, lambda stage: _sft.sft(policy, conversations, config, stage))


def rl(model: Model, task: Task, out: str | Path | None = None, seed: int = 0, **settings: Any) -> Policy:
    """Reinforcement learning, in place, on a task's training prompts and verdicts; settings are an rl stage's."""
    policy, config = _policy(model), _config(_rl.RLConfig, settings)
    prompts = task.prompts("dev")[:64] if config.kl_coef else []
    probe = KLProbe(policy.copy(), prompts, config.max_tokens) if prompts else None
    return _trained(policy, out, seed, lambda stage: _rl.rl(policy, task, config, stage, probe))


def evaluate(model: Model, task: Task, seed: int = 0, **settings: Any) -> evals.Evaluation:
    """Accuracy with intervals; `.rows(name, seed)` gives rows. Settings are those of a recipe's `evaluate` entry."""
    return evals.evaluate(_policy(model), task, _config(evals.EvalConfig, {"task": task.name, **settings}), seed)


def run(recipe: str | Path, out: str | Path | None = None, set: Sequence[str] = ()) -> Path:
    """Run a bundled recipe or a YAML file; returns the run's directory, its report within."""
    return runner.run(load_recipe(recipe, set), None if out is None else Path(out))


def _policy(model: Model) -> Policy:
    return model if isinstance(model, Policy) else load(model)


def _config(kind: Any, settings: Mapping[str, Any]) -> Any:
    try:
        return kind(**settings)
    except ValidationError as error:
        raise StropError(explain(error, kind, kind.__name__)) from error


def _trained(policy: Policy, out: str | Path | None, seed: int, train: Callable[[Stage], Any]) -> Policy:
    with tempfile.TemporaryDirectory() as traces:
        train(Stage(Path(traces), seed))
    if out is not None:
        policy.save(Path(out))
    return policy
