"""Rewriting a few words under checkable constraints: their order, a word left out, how they are written."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from strop.tasks.base import Procedural, register, split_of
from strop.types import Prompt, Verdict

WORDS = (
    "apple bird blue boat book bread bridge cat chair cloud coat cold dark desk dog door east farm field fire "
    "fish frog gold green hand hat hill horse house ice key king lake lamp leaf lion moon mouse night north paper "
    "park pear queen rain red river road rock roof salt sand sea ship shoe sky snow south star stone storm sun "
    "table tea town tree wall warm water west wind wood "
).split()

# What is done to the list of words, then how the result is written.
ORDERS: dict[str, tuple[str, Callable[[list[str]], list[str]]]] = {
    "same": ("in the same order", list),
    "reverse": ("in reverse order", lambda w: w[::-1]),
    "first": ("without the first one", lambda w: w[1:]),
    "last": ("without the last one", lambda w: w[:-1]),
}
STYLES: dict[str, tuple[str, Callable[[list[str]], str]]] = {
    "plain": ("", " ".join),
    "stop": (", with a full stop at the end", lambda w: " ".join(w) + "."),
    "commas": (", separated by commas", ", ".join),
    "quotes": (", in double quotes", lambda w: '"' + " ".join(w) + '"'),
}


def words_of(rng: random.Random, count: int, split: str) -> list[str]:
    """Different words whose sequence belongs to `split`."""
    while True:
        words = rng.sample(WORDS, count)
        if split_of(" ".join(sorted(words))) == split:
            return words


def ask(rng: random.Random, words: Sequence[str], order: str, style: str) -> str:
    """The request, in one of several manners of speaking."""
    verb = rng.choice(("Write", "Rewrite", "Give"))
    return f"{verb} these words {ORDERS[order][0]}{STYLES[style][0]}: {' '.join(words)}"


def rewritten(words: Sequence[str], order: str, style: str) -> str:
    """The words under an order and a style: the one right answer."""
    return STYLES[style][1](ORDERS[order][1](list(words)))


@register("rewrite")
class Rewrite(Procedural):
    """Rewriting words under two constraints. Tiers are numbers of words."""

    name = "rewrite"

    def __init__(self, tiers: Sequence[int] = (3, 4, 5), size: int = 3000):
        super().__init__(tiers, size)

    def draw(self, rng: random.Random, tier: int, split: str) -> tuple[str, str, dict[str, Any]]:
        words = words_of(rng, tier, split)
        order, style = rng.choice(list(ORDERS)), rng.choice(list(STYLES))
        question, answer = ask(rng, words, order, style), rewritten(words, order, style)
        return question, answer, {"words": words, "order": order, "style": style}

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Strict: the text is the answer. Flexible: its first line holds it, quotes and case aside."""
        line, *_ = text.strip().splitlines() or [""]
        strict = float(text.strip() == prompt.answer)
        flexible = float(line.strip(' ".').lower() == prompt.answer.strip(' ".').lower())
        return Verdict(strict, parts={"strict": strict, "flexible": flexible})

    def gold(self, prompt: Prompt) -> str:
        return prompt.answer
