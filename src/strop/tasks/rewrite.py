"""Rewriting a few words under checkable constraints: order, case, first or last word, ending."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from strop.tasks.base import SPLITS, register, split_of
from strop.types import Prompt, Verdict

WORDS = (
    "apple bird blue boat book bread bridge bright brown cat chair cloud coat cold dark deep desk dog door "
    "dry east egg farm fast field fire fish flat frog gold grass green hand hat hill home horse house ice "
    "iron key king lake lamp late leaf light lion long moon morning mouse night north old paper park pear "
    "pen pink plain queen quick rain red ring river road rock roof room round salt sand sea shell ship shoe "
    "silver sky slow small snow soft song south star stone storm street summer sun table tall tea time town "
    "tree wall warm water west wet white wind window winter wood yellow young"
).split()

# What is done to the list of words, then how the sentence is written.
ORDERS: dict[str, tuple[str, Callable[[list[str]], list[str]]]] = {
    "reverse": ("in reverse order", lambda w: w[::-1]),
    "sort": ("in alphabetical order", sorted),
    "same": ("in the same order", list),
    "first": ("without the first word", lambda w: w[1:]),
    "last": ("without the last word", lambda w: w[:-1]),
}
STYLES: dict[str, tuple[str, Callable[[str], str]]] = {
    "plain": ("", lambda s: s),
    "upper": (", in capitals", str.upper),
    "stop": (", with a full stop at the end", lambda s: s + "."),
    "quote": (", in double quotes", lambda s: f'"{s}"'),
}


def words_of(rng: random.Random, count: int, split: str) -> list[str]:
    """Different words whose sequence belongs to `split`."""
    while True:
        words = rng.sample(WORDS, count)
        if split_of(" ".join(sorted(words))) == split:
            return words


def ask(rng: random.Random, words: Sequence[str], order: str, style: str) -> str:
    """The request, in one of several manners of speaking."""
    what = f"{ORDERS[order][0]}{STYLES[style][0]}"
    text = " ".join(words)
    verb = rng.choice(("Write", "Rewrite", "Give"))
    return f"{verb} these words {what}: {text}"


def rewritten(words: Sequence[str], order: str, style: str) -> str:
    """The words under an order and a style: the one right answer."""
    return STYLES[style][1](" ".join(ORDERS[order][1](list(words))))


@register("rewrite")
class Rewrite:
    """Rewriting words under two constraints. Tiers are numbers of words."""

    name = "rewrite"

    def __init__(self, tiers: Sequence[int] = (3, 4, 5), size: int = 3000):
        if not tiers or not all(isinstance(t, int) and 2 <= t <= 20 for t in tiers):
            raise ValueError(f"tiers are numbers of words from 2 to 20, not {tiers}")
        self.tiers, self.size = tuple(tiers), size

    def prompts(self, split: str) -> list[Prompt]:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        rng = random.Random(f"rewrite {split}")
        out: list[Prompt] = []
        seen: set[str] = set()
        while len(out) < self.size:
            tier = self.tiers[len(out) % len(self.tiers)]
            words = words_of(rng, tier, split)
            order, style = rng.choice(list(ORDERS)), rng.choice(list(STYLES))
            prompt = Prompt.user(
                ask(rng, words, order, style),
                task=self.name,
                row=len(out),
                answer=rewritten(words, order, style),
                extras={"tier": tier, "words": words, "order": order, "style": style},
            )
            if prompt.id not in seen:
                seen.add(prompt.id)
                out.append(prompt)
        return out

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Strict: the text is the answer. Flexible: its first line holds it, quotes and case aside."""
        gold = prompt.answer
        lines = text.strip().splitlines() or [""]
        strict = float(text.strip() == gold)
        flexible = float(lines[0].strip(' ".').lower() == gold.strip(' ".').lower())
        return Verdict(strict, parts={"strict": strict, "flexible": flexible})

    def gold(self, prompt: Prompt) -> str:
        return prompt.answer

    def demonstrate(self, prompt: Prompt) -> str:
        return prompt.answer
