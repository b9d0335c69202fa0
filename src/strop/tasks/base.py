"""What tasks share: the registry, judging without exceptions, procedural problems, and checking a task itself."""

import hashlib
import importlib.util
import inspect
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from strop.errors import StropError
from strop.protocols import Task
from strop.types import Judged, Prompt, Rollout, Verdict

SPLITS = ("train", "dev", "test")
REFUSALS = ("", "I'm sorry, but I can't help with that.", "\x00\ufffd{{}}[[", "The answer is unknown.")
_REGISTRY: dict[str, Callable[..., Task]] = {}


def register(name: str) -> Callable[[Callable[..., Task]], Callable[..., Task]]:
    """Class decorator: make a task known by name. Packages may use the entry point group `strop.tasks` instead."""

    def add(factory: Callable[..., Task]) -> Callable[..., Task]:
        _REGISTRY[name] = factory
        return factory

    return add


def task_names() -> list[str]:
    return sorted({*_REGISTRY, *(e.name for e in entry_points(group="strop.tasks"))})


def task(name: str, **options: Any) -> Task:
    """A task by its registered name or `path/to/file.py:ClassName`; StropError for an unknown name or option."""
    factory = _from_file(name) if ".py:" in name else find(name)
    known = list(inspect.signature(factory).parameters)
    for option in (o for o in options if o not in known):
        near = get_close_matches(option, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known) or 'none'}"
        raise StropError(f"task {name}: unknown option {option!r}; {hint}")
    try:
        return factory(**options)
    except (TypeError, ValueError) as error:
        raise StropError(f"task {name}: {error}") from error


def find(name: str) -> Callable[..., Task]:
    if name in _REGISTRY:
        return _REGISTRY[name]
    for entry in entry_points(group="strop.tasks", name=name):
        return entry.load()
    near = get_close_matches(name, task_names(), 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(task_names())}"
    raise StropError(f"unknown task {name!r}; {hint}")


def _from_file(name: str) -> Callable[..., Task]:
    path, _, attribute = name.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"strop_task_{Path(path).stem}", path)
    if not Path(path).is_file() or spec is None or spec.loader is None:
        raise StropError(f"task {name}: no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
        return getattr(module, attribute)
    except Exception as error:
        raise StropError(f"task {name}: {type(error).__name__}: {error}") from error


def judge(task: Task, prompt: Prompt, text: str) -> Verdict:
    """Verify, turning whatever a verifier raises into an invalid verdict with the reason."""
    try:
        verdict = task.verify(prompt, text)
    except Exception as error:
        return Verdict.unjudged(" ".join(f"{type(error).__name__}: {error}".split()))
    wrong = f"verify returned {type(verdict).__name__}, not a Verdict"
    return verdict if isinstance(verdict, Verdict) else Verdict.unjudged(wrong)


def judge_all(task: Task, rollouts: Sequence[Rollout]) -> list[Judged]:
    """Each rollout with its verdict; StropError when over 5 % are invalid: a broken verifier is no weak model."""
    judged = [Judged(r, judge(task, r.prompt, r.text)) for r in rollouts]
    bad = [j for j in judged if j.verdict.invalid]
    if len(bad) > 0.05 * len(judged):
        where = f"first at row {bad[0].rollout.prompt.row}: {bad[0].verdict.invalid}"
        raise StropError(f"task {task.name}: {len(bad)} of {len(judged)} verdicts are invalid, {where}")
    return judged


def split_of(key: str) -> str:
    """The split that a procedural problem belongs to, by its content: a tenth each to `test` and `dev`."""
    return {0: "test", 1: "dev"}.get(hashlib.sha256(key.encode()).digest()[0] % 10, "train")


class Procedural(ABC):
    """A task whose problems are drawn, not read: always the same `size` for a split, its tiers taking turns."""

    name: str

    def __init__(self, tiers: Sequence[int], size: int):
        if not tiers or not all(isinstance(t, int) and 2 <= t <= 20 for t in tiers):
            raise ValueError(f"tiers are whole numbers from 2 to 20, not {tiers}")
        self.tiers, self.size = tuple(tiers), size

    @abstractmethod
    def draw(self, rng: random.Random, tier: int, split: str) -> tuple[str, str, dict[str, Any]]:
        """A question of a tier and split, its gold answer, and extras."""

    def prompts(self, split: str) -> list[Prompt]:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        rng, out = random.Random(f"{self.name} {split}"), dict[str, Prompt]()
        while len(out) < self.size:
            tier = self.tiers[len(out) % len(self.tiers)]
            question, answer, extras = self.draw(rng, tier, split)
            extras = {"tier": tier, **extras}
            out.setdefault(question, Prompt.user(question, task=self.name, row=len(out), answer=answer, extras=extras))
        return list(out.values())


def validate(task: Task, split: str = "test", limit: int = 100) -> list[str]:
    """What is wrong with a task: gold that doesn't score 1, or a refusal or garbage that doesn't score 0."""
    prompts = task.prompts(split)[:limit]
    wrong = [] if prompts else [f"{task.name}: split {split!r} has no prompts"]
    for prompt in prompts:
        for text, expected, what in [(task.gold(prompt), 1, "the gold answer"), *((r, 0, repr(r)) for r in REFUSALS)]:
            if (verdict := judge(task, prompt, text)).correctness != expected:
                got = verdict.invalid or verdict.correctness
                wrong.append(f"{task.name} row {prompt.row}: {what} got {got}, expected {expected}")
    return wrong
