"""The registry, judging without exceptions, and the check of a task."""

import pytest

from strop.errors import StropError
from strop.protocols import Task
from strop.tasks import judge, register, task, task_names, validate
from strop.tasks.base import _REGISTRY, judge_all, split_of
from strop.types import Prompt, Rollout, Sampling, Turn, Verdict

BUILT_IN = ("arithmetic", "rewrite")


class Echo:
    """The answer is the question's own text."""

    name = "echo"

    def __init__(self, size: int = 3):
        self.size = size

    def prompts(self, split):
        return [Prompt.user(f"say {i}", row=i, answer=str(i)) for i in range(self.size)]

    def verify(self, prompt, text):
        return Verdict(float(text == prompt.answer))

    def gold(self, prompt):
        return prompt.answer


def rollout(prompt: Prompt, text: str) -> Rollout:
    return Rollout(prompt, (Turn((1,), (2,), (0.0,)),), Sampling(), "stop", text)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_built_in_tasks_are_sound(name, split):
    assert isinstance(task(name), Task) and name in task_names()
    assert validate(task(name, size=60), split) == []


class AcceptsAll(Echo):
    def verify(self, prompt, text):
        return Verdict(1.0)


class AcceptsNothing(Echo):
    def verify(self, prompt, text):
        return Verdict(0.0)


class Raises(Echo):
    def verify(self, prompt, text):
        return Verdict(float(int(text) == int(prompt.answer)))


@pytest.mark.parametrize(
    "broken, wrong, says",
    [
        (AcceptsAll(), 12, "'' got 1.0, expected 0"),  # four refusals for each of three prompts
        (AcceptsNothing(), 3, "the gold answer got 0.0, expected 1"),
        (Raises(), 12, "ValueError"),
        (Echo(size=0), 1, "split 'test' has no prompts"),
    ],
)
def test_validate_says_what_is_wrong(broken, wrong, says):
    complaints = validate(broken)
    assert len(complaints) == wrong and all("echo" in c for c in complaints) and says in complaints[0]


def test_a_verifier_that_raises_gives_an_invalid_verdict():
    verdict = judge(Raises(), Prompt.user("q", answer="1"), "not a number")
    assert verdict.correctness is None and verdict.invalid.startswith("ValueError: invalid literal")
    assert judge(Raises(), Prompt.user("q", answer="1"), "1").correctness == 1.0


@pytest.mark.parametrize("returned", [None, True, 0.5])
def test_a_verifier_that_returns_no_verdict_is_invalid(returned):
    class Careless(Echo):
        def verify(self, prompt, text):
            return returned

    assert type(returned).__name__ in judge(Careless(), Prompt.user("q"), "a").invalid


@pytest.mark.parametrize("bad, stops", [(0, False), (2, False), (3, True), (40, True)])
def test_judging_stops_over_5_percent_invalid(bad, stops):
    prompt = Prompt.user("q", answer="1", row=17)
    rollouts = [rollout(prompt, "crash" if i < bad else "1") for i in range(40)]
    if stops:
        with pytest.raises(StropError, match=f"{bad} of 40 verdicts are invalid, first at row 17: Value"):
            judge_all(Raises(), rollouts)
    else:
        judged = judge_all(Raises(), rollouts)
        assert [j.rollout for j in judged] == rollouts
        assert sum(j.verdict.invalid is not None for j in judged) == bad
        assert [j.score() for j in judged] == [None] * bad + [1.0] * (40 - bad)


def test_a_key_has_one_split_and_a_tenth_goes_to_dev_and_to_test():
    splits = [split_of(str(i)) for i in range(5000)]
    assert splits == [split_of(str(i)) for i in range(5000)]
    assert splits.count("test") == pytest.approx(500, abs=75)
    assert splits.count("dev") == pytest.approx(500, abs=75)


USER_TASK = """
from __future__ import annotations
from dataclasses import dataclass
from strop.types import Prompt, Verdict

@dataclass
class Mine:
    size: int = 2
    name: str = "mine"

    def prompts(self, split):
        return [Prompt.user(f"say {i}", row=i, answer=str(i)) for i in range(self.size)]

    def verify(self, prompt, text):
        return Verdict(float(text == prompt.answer))

    def gold(self, prompt):
        return prompt.answer
"""


def test_a_users_task_from_a_file(tmp_path):
    path = tmp_path / "json.py"  # named like a module of the standard library
    path.write_text(USER_TASK)
    mine = task(f"{path}:Mine", size=4)
    assert isinstance(mine, Task) and len(mine.prompts("test")) == 4 and validate(mine) == []
    import json

    assert json.dumps({}) == "{}"


@pytest.mark.parametrize(
    "source, name, says",
    [
        (None, "mine.py:Mine", "no file .*mine.py"),
        (USER_TASK, "mine.py:Yours", "has no attribute 'Yours'"),
        ("import no_such_package", "mine.py:Mine", "ModuleNotFoundError: No module"),
        ("def :", "mine.py:Mine", "SyntaxError"),
    ],
)
def test_a_file_without_the_task_gives_one_line(tmp_path, source, name, says):
    if source is not None:
        (tmp_path / "mine.py").write_text(source)
    with pytest.raises(StropError, match=says) as raised:
        task(f"{tmp_path}/{name}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("arithmetics", {}, "unknown task 'arithmetics'; did you mean 'arithmetic'?"),
        ("rewritten", {}, "did you mean 'rewrite'?"),
        ("zzz", {}, "unknown task 'zzz'; there are arithmetic,"),
        ("arithmetic", {"tier": 2}, "unknown option 'tier'; did you mean 'tiers'?"),
        ("arithmetic", {"zzz": 2}, "unknown option 'zzz'; it takes tiers, terse, size"),
        ("arithmetic", {"tiers": []}, "task arithmetic: tiers are"),
        ("rewrite", {"tiers": [1]}, "task rewrite: tiers are"),
    ],
)
def test_an_unknown_task_or_option_names_the_nearest(name, options, says):
    with pytest.raises(StropError) as raised:
        task(name, **options)
    assert says in str(raised.value)


def test_registering_makes_a_task_known(monkeypatch):
    monkeypatch.setattr("strop.tasks.base._REGISTRY", dict(_REGISTRY))
    assert register("echo")(Echo) is Echo
    assert task("echo", size=5).size == 5 and "echo" in task_names()
