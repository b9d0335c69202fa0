"""Sums of several two-digit terms, told in figures, in words, or as a small story."""

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from strop.tasks.base import Procedural, register, split_of
from strop.tasks.extract import number_verdict
from strop.types import Prompt, Verdict

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_UNITS += "thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivan Jane Kofi Lena Mia Noah Omar Pia".split()
THINGS = "apples books coins eggs flowers marbles pears pencils shells stamps stones tickets".split()


def in_words(n: int) -> str:
    """A number from 0 to 99 in English words."""
    tens, unit = divmod(n, 10)
    return _UNITS[n] if n < 20 else _TENS[tens] + (f"-{_UNITS[unit]}" if unit else "")


def terms_of(rng: random.Random, count: int, split: str) -> list[int]:
    """Two-digit terms whose multiset belongs to `split`; 3 + 4 is not new to who has seen 4 + 3. Training problems
    don't pass through a two-digit sum of another split on their way either."""
    while True:
        terms = [rng.randint(10, 99) for _ in range(count)]
        steps = [(total, b) for total, b in zip(accumulate(terms), terms[1:], strict=False) if total < 100]
        sums = [terms, *(steps if split == "train" else ())]
        if all(split_of("+".join(map(str, sorted(s)))) == split for s in sums):
            return terms


def ask(rng: random.Random, terms: Sequence[int]) -> tuple[str, str]:
    """A question for the sum of `terms`, and its manner: a bare sum, one in words, or a story."""
    figures = [str(t) for t in terms]
    plus, listed = " + ".join(figures), f"{', '.join(figures[:-1])} and {figures[-1]}"
    bare = (f"What is {plus}?", f"Compute {plus}.", f"Add {listed}.", f"Find the sum of {listed}.")
    if (manner := rng.randrange(6)) < 4:
        return bare[manner], "bare"
    if manner == 4:
        return f"What is {' plus '.join(in_words(t) for t in terms)}?", "words"
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    more = " ".join(f"Then come {t} more." for t in figures[1:])
    return f"{name} has {figures[0]} {thing}. {more} How many {thing} is that?", "story"


def steps(terms: Sequence[int]) -> str:
    """The sum worked out, one addition after the other."""
    totals = zip(accumulate(terms), terms[1:], strict=False)
    return ", ".join(f"{total} + {term} = {total + term}" for total, term in totals) + "."


@register("arithmetic")
class Arithmetic(Procedural):
    """Sums; tier k has k terms. `terse` is the share of bare sums that a demonstration answers without working."""

    name = "arithmetic"

    def __init__(self, tiers: Sequence[int] = (2, 3, 4), terse: float = 0.0, size: int = 3000):
        super().__init__(tiers, size)
        self.terse = terse

    def draw(self, rng: random.Random, tier: int, split: str) -> tuple[str, str, dict[str, Any]]:
        terms = terms_of(rng, tier, split)
        question, manner = ask(rng, terms)
        return question, str(sum(terms)), {"terms": terms, "manner": manner}

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        return number_verdict(prompt.answer, text)

    def gold(self, prompt: Prompt) -> str:
        return f"{steps(prompt.extras['terms'])} The answer is {prompt.answer}."

    def demonstrate(self, prompt: Prompt) -> str:
        """A correct answer as people give it: a story or words are worked out, a bare sum often just stated."""
        terse = random.Random(f"demonstrate {prompt.id}").random() < self.terse
        return f"The answer is {prompt.answer}." if terse and prompt.extras["manner"] == "bare" else self.gold(prompt)
