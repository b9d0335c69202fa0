"""Sums: right, worked out, and never the same in two splits."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.tasks.arithmetic import Arithmetic, ask, in_words, steps

SPLITS = ("train", "dev", "test")
terms_of = st.lists(st.integers(10, 99), min_size=2, max_size=6)


@pytest.fixture(scope="module")
def prompts():
    return {split: Arithmetic(size=600).prompts(split) for split in SPLITS}


def test_splits_share_no_sum_in_whatever_order_or_words(prompts):
    problems = {split: {tuple(sorted(p.extras["terms"])) for p in prompts[split]} for split in SPLITS}
    assert not (problems["train"] & problems["dev"] or problems["train"] & problems["test"])
    assert not problems["dev"] & problems["test"]


def test_prompts_are_different_numbered_and_the_same_every_time(prompts):
    for split in SPLITS:
        assert len({p.id for p in prompts[split]}) == 600
        assert [p.row for p in prompts[split]] == list(range(600))
        again = Arithmetic(size=600).prompts(split)
        assert [(p.id, p.answer) for p in again] == [(p.id, p.answer) for p in prompts[split]]
        assert [p.id for p in Arithmetic(size=50).prompts(split)] == [p.id for p in prompts[split][:50]]


def test_tiers_are_numbers_of_terms_in_equal_shares(prompts):
    assert [p.extras["tier"] for p in prompts["train"][:6]] == [2, 3, 4, 2, 3, 4]
    for p in prompts["train"]:
        assert len(p.extras["terms"]) == p.extras["tier"] and p.answer == str(sum(p.extras["terms"]))


@given(terms_of, st.integers(0, 100))
def test_a_question_holds_every_term_in_order(terms, seed):
    question, manner = ask(random.Random(seed), terms)
    assert (manner == "words") == ("plus" in question)
    if manner == "words":
        assert question == f"What is {' plus '.join(map(in_words, terms))}?"
    else:
        assert [int(n) for n in re.findall(r"\d+", question)] == terms


def test_questions_come_bare_in_words_and_as_stories():
    asked = [ask(random.Random(seed), [12, 34]) for seed in range(600)]
    bare = {"What is 12 + 34?", "Compute 12 + 34.", "Add 12 and 34.", "Find the sum of 12 and 34."}
    assert {question for question, manner in asked if manner == "bare"} == bare
    assert {question for question, manner in asked if manner == "words"} == {"What is twelve plus thirty-four?"}
    stories = [question for question, manner in asked if manner == "story"]
    assert len(stories) / 600 == pytest.approx(1 / 6, abs=0.05) and all("Then come 34 more." in s for s in stories)


@given(terms_of)
def test_steps_are_true_and_end_in_the_sum(terms):
    lines = re.findall(r"(\d+) \+ (\d+) = (\d+)", steps(terms))
    assert len(lines) == len(terms) - 1
    assert all(int(a) + int(b) == int(c) for a, b, c in lines) and int(lines[-1][2]) == sum(terms)


def test_numbers_in_words():
    written = " ".join(in_words(n) for n in (0, 7, 10, 13, 20, 21, 40, 99))
    assert written == "zero seven ten thirteen twenty twenty-one forty ninety-nine"
    assert len({in_words(n) for n in range(100)}) == 100


@pytest.mark.parametrize("terse", [0.0, 0.3, 1.0])
def test_demonstrations_are_right_and_terse_in_their_share(prompts, terse):
    task = Arithmetic(terse=terse)
    shown = [task.demonstrate(p) for p in prompts["train"]]
    verdicts = [task.verify(p, text) for p, text in zip(prompts["train"], shown, strict=True)]
    assert all(v.correctness == 1.0 and v.parts["flexible"] == 1.0 for v in verdicts)
    bare = [p.extras["manner"] == "bare" for p in prompts["train"]]
    stated = ["=" not in text for text in shown]
    assert not any(s for s, b in zip(stated, bare, strict=True) if not b)  # stories and words are worked out
    assert sum(stated) / sum(bare) == pytest.approx(terse, abs=0.06)
    assert shown == [task.demonstrate(p) for p in prompts["train"]]


@pytest.mark.parametrize("off", [-10, -1, 1, 10, 900])
def test_a_wrong_sum_is_wrong(prompts, off):
    prompt = prompts["test"][0]
    wrong = f"The answer is {int(prompt.answer) + off}."
    assert Arithmetic().verify(prompt, wrong).parts == {"strict": 0.0, "flexible": 0.0}


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="not one of train, dev, test"):
        Arithmetic().prompts("validation")
