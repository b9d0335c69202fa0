"""Rewriting words: one right answer, near misses, and splits apart."""

import pytest

from strop.tasks.rewrite import ORDERS, STYLES, WORDS, Rewrite, rewritten
from strop.types import Prompt

SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def prompts():
    return {split: Rewrite(size=400).prompts(split) for split in SPLITS}


def test_splits_share_no_set_of_words(prompts):
    sets = {split: {frozenset(p.extras["words"]) for p in prompts[split]} for split in SPLITS}
    assert not (sets["train"] & sets["dev"] or sets["train"] & sets["test"] or sets["dev"] & sets["test"])


def test_prompts_are_different_and_the_same_every_time(prompts):
    for split in SPLITS:
        assert len({p.id for p in prompts[split]}) == 400
        again = Rewrite(size=400).prompts(split)
        assert [(p.id, p.answer) for p in again] == [(p.id, p.answer) for p in prompts[split]]


def test_every_prompt_says_what_to_do_to_which_words(prompts):
    assert len(set(WORDS)) == len(WORDS)
    seen = set()
    for p in prompts["train"]:
        words, order, style = (p.extras[k] for k in ("words", "order", "style"))
        text = p.messages[0].content
        assert text.endswith(": " + " ".join(words)) and len(set(words)) == len(words) == p.extras["tier"]
        assert f"these words {ORDERS[order][0]}{STYLES[style][0]}:" in text
        assert p.answer == rewritten(words, order, style)
        seen.add((order, style))
    assert len(seen) == len(ORDERS) * len(STYLES)


@pytest.mark.parametrize(
    "order, style, answer",
    [
        ("reverse", "plain", "blue key apple"),
        ("same", "commas", "apple, key, blue"),
        ("first", "stop", "key blue."),
        ("last", "quotes", '"apple key"'),
    ],
)
def test_what_each_order_and_style_does(order, style, answer):
    assert rewritten(["apple", "key", "blue"], order, style) == answer


def prompt(answer: str) -> Prompt:
    return Prompt.user("q", answer=answer)


@pytest.mark.parametrize(
    "answer, text, strict, flexible",
    [
        ("blue key", "blue key", 1, 1),
        ("blue key", " blue key\n", 1, 1),
        ("blue key", "Blue key.", 0, 1),
        ("blue key", '"blue key"', 0, 1),
        ("blue key", "blue key\nThat is all.", 0, 1),
        ("blue key", "Here: blue key", 0, 0),
        ("blue key", "key blue", 0, 0),
        ("blue key", "blue keys", 0, 0),
        ("blue key", "blue  key", 0, 0),
        ("blue key", "", 0, 0),
        ("BLUE KEY", "blue key", 0, 1),
        ("blue key.", "blue key", 0, 1),
        ("blue key.", "blue key.", 1, 1),
        ('"blue key"', "blue key", 0, 1),
    ],
)
def test_strict_wants_the_very_text_and_flexible_forgives_its_dress(answer, text, strict, flexible):
    verdict = Rewrite().verify(prompt(answer), text)
    assert verdict.correctness == strict
    assert verdict.parts == {"strict": strict, "flexible": flexible}
