"""Sums of several two-digit terms, told in figures, in words, or as a small story."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from strop.tasks.base import Procedural, register, split_of
from strop.tasks.extract import number_verdict
from strop.types import Prompt, Verdict

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivan Jane Kofi Lena Mia Noah Omar Pia".split()
THINGS = "apples books coins eggs flowers marbles pears pencils shells stamps stones tickets".split()


def in_words(n: int) -> str:
    """A number from 0 to 99 in English words."""
    if n < 20:
        return _UNITS[n]
    tens, unit = divmod(n, 10)
    return _TENS[tens] + (f"-{_UNITS[unit]}" if unit else "")


def terms_of(rng: random.Random, count: int, split: str) -> list[int]:
    """Two-digit terms whose multiset belongs to `split`; 3 + 4 is not new to who has seen 4 + 3. Training problems
    don't pass through a two-digit sum of another split on their way either."""
    while True:
        terms = [rng.randint(10, 99) for _ in range(count)]
        steps = [(total, b) for total, b in zip(accumulate(terms), terms[1:], strict=False) if total < 100]
        sums = [terms, *(steps if split == "train" else ())]
        if all(split_of("+".join(map(str, sorted(s)))) == split for s in sums):
            return terms


def ask(rng: random.Random, terms: Sequence[int]) -> str:
    """A question for the sum of `terms`, in one of several manners of speaking."""
    figures = [str(t) for t in terms]
    manner = rng.randrange(6)
    if manner == 0:
        return f"What is {' + '.join(figures)}?"
    if manner == 1:
        return f"Compute {' + '.join(figures)}."
    if manner == 2:
        return f"Add {', '.join(figures[:-1])} and {figures[-1]}."
    if manner == 3:
        return f"Find the sum of {', '.join(figures[:-1])} and {figures[-1]}."
    if manner == 4:
        return f"What is {' plus '.join(in_words(t) for t in terms)}?"
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    more = " ".join(f"Then come {t} more." for t in figures[1:])
    return f"{name} has {figures[0]} {thing}. {more} How many {thing} is that?"


def steps(terms: Sequence[int]) -> str:
    """The sum worked out, one addition after the other."""
    total, lines = terms[0], []
    for term in terms[1:]:
        lines.append(f"{total} + {term} = {total + term}")
        total += term
    return ", ".join(lines) + "."


@register("arithmetic")
class Arithmetic(Procedural):
    """Sums; tier k has k terms. `terse` is the share of demonstrations that state only the answer."""

    name = "arithmetic"

    def __init__(self, tiers: Sequence[int] = (2, 3, 4), terse: float = 0.0, size: int = 3000):
        super().__init__(tiers, size)
        self.terse = terse

    def draw(self, rng: random.Random, tier: int, split: str) -> tuple[str, str, dict[str, Any]]:
        terms = terms_of(rng, tier, split)
        return ask(rng, terms), str(sum(terms)), {"terms": terms}

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        return number_verdict(prompt.answer, text)

    def gold(self, prompt: Prompt) -> str:
        return f"{steps(prompt.extras['terms'])} The answer is {prompt.answer}."

    def demonstrate(self, prompt: Prompt) -> str:
        """A correct answer as a person might give it: worked, or (a `terse` share) stated at once."""
        rng = random.Random(f"demonstrate {prompt.id}")
        return f"The answer is {prompt.answer}." if rng.random() < self.terse else self.gold(prompt)
