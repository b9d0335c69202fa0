"""What tasks share: the registry, judging without exceptions, and a number's verdict."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from strop.errors import StropError
from strop.protocols import Task
from strop.tasks.extract import last_number, same_number, stated_number
from strop.types import Judged, Prompt, Rollout, Verdict

SPLITS = ("train", "dev", "test")
_REGISTRY: dict[str, Callable[..., Task]] = {}


def register(name: str) -> Callable[[Callable[..., Task]], Callable[..., Task]]:
    """Class decorator: make a task known by name. Packages may use the entry point group
    `strop.tasks` instead."""

    def add(factory: Callable[..., Task]) -> Callable[..., Task]:
        _REGISTRY[name] = factory
        return factory

    return add


def task_names() -> list[str]:
    """Every task known by name, built in or from an installed package."""
    return sorted({*_REGISTRY, *(e.name for e in entry_points(group="strop.tasks"))})


def task(name: str, **options: Any) -> Task:
    """A task by its registered name, or `path/to/file.py:ClassName`. Raises StropError for an
    unknown name or option, naming the nearest."""
    factory = _from_file(name) if ".py:" in name else _by_name(name)
    known = inspect.signature(factory).parameters
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}"
            raise StropError(f"task {name}: unknown option {option!r}; {hint}")
    try:
        return factory(**options)
    except (TypeError, ValueError) as error:
        raise StropError(f"task {name}: {error}") from error


def describe(name: str) -> str:
    """The first line of a task's docstring."""
    return (inspect.getdoc(_by_name(name)) or "").partition("\n")[0]


def _by_name(name: str) -> Callable[..., Task]:
    if name in _REGISTRY:
        return _REGISTRY[name]
    for entry in entry_points(group="strop.tasks"):
        if entry.name == name:
            return entry.load()
    near = get_close_matches(name, task_names(), 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(task_names())}"
    raise StropError(f"unknown task {name!r}; {hint}")


def _from_file(name: str) -> Callable[..., Task]:
    path, _, attribute = name.rpartition(":")
    if not Path(path).is_file():
        raise StropError(f"task {name}: no file {path}")
    spec = importlib.util.spec_from_file_location(f"strop_task_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise StropError(f"{path}: cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise StropError(f"{path}: has no {attribute!r}")
    return getattr(module, attribute)


def judge(task: Task, prompt: Prompt, text: str) -> Verdict:
    """Verify, turning whatever a verifier raises into an invalid verdict with the reason."""
    try:
        verdict = task.verify(prompt, text)
    except Exception as error:
        return Verdict.unjudged(f"{type(error).__name__}: {error}")
    if not isinstance(verdict, Verdict):
        return Verdict.unjudged(f"verify returned {type(verdict).__name__}, not a Verdict")
    return verdict


def judge_all(task: Task, rollouts: Sequence[Rollout]) -> list[Judged]:
    """Each rollout with its verdict. Raises StropError when over 5 % are invalid: a broken
    verifier must not pass for a weak model."""
    judged = [Judged(r, judge(task, r.prompt, r.text)) for r in rollouts]
    bad = [j for j in judged if j.verdict.invalid]
    if len(bad) > 0.05 * len(judged):
        where = f"first at row {bad[0].rollout.prompt.row}: {bad[0].verdict.invalid}"
        raise StropError(f"task {task.name}: {len(bad)} of {len(judged)} verdicts are invalid, {where}")
    return judged


def number_verdict(gold: str, text: str) -> Verdict:
    """Verdict of a numeric answer; its correctness is the strict one, `parts` hold both."""
    if last_number(gold) is None:
        return Verdict.unjudged(f"the gold answer {gold!r} holds no number")
    gold = last_number(gold) or ""
    strict = float(same_number(stated_number(text), gold))
    flexible = float(same_number(last_number(text), gold))
    return Verdict(strict, parts={"strict": strict, "flexible": flexible})


def split_of(key: str) -> str:
    """The split that a procedural problem belongs to, by its content: a tenth each to `test` and
    `dev`. Whatever draws problems (training text, demonstrations, RL) skips the others."""
    bucket = hashlib.sha256(key.encode()).digest()[0] % 10
    return "test" if bucket == 0 else "dev" if bucket == 1 else "train"


REFUSALS = ("", "I'm sorry, but I can't help with that.", "\x00\ufffd{{}}[[", "The answer is unknown.")


def validate(task: Task, split: str = "test", limit: int = 100) -> list[str]:
    """What is wrong with a task: a gold that doesn't score 1, or a refusal, garbage or nothing
    that scores above 0 or raises. An empty list means that it is sound."""
    wrong: list[str] = []
    prompts: Sequence[Prompt] = task.prompts(split)[:limit]
    if not prompts:
        return [f"{task.name}: split {split!r} has no prompts"]
    for prompt in prompts:
        cases = [(task.gold(prompt), 1.0, "the gold answer")] + [(r, 0.0, repr(r)) for r in REFUSALS]
        for text, expected, what in cases:
            verdict = judge(task, prompt, text)
            if verdict.correctness != expected:
                got = verdict.invalid or verdict.correctness
                wrong.append(f"{task.name} row {prompt.row}: {what} got {got}, expected {expected:g}")
    return wrong
