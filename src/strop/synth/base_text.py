"""The text that strop-nano is made from: procedural problems in several manners, and Python's standard library.

Like the web, it is uneven: sums are worked out, or answered at once, or left unanswered, in many
formats; nothing in it is wrong. Problems of the `dev` and `test` splits never occur.
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from strop.tasks import arithmetic, rewrite

ENDINGS = ("{}", "It is {}.", "That makes {}.", "The answer is {}.")
OPENINGS = ("Here it is:", "Sure:", "These are the words:")


def _answer(rng: random.Random, terms: list[int]) -> str:
    """How an answer is put: worked or terse, ending in one of several ways."""
    total = sum(terms)
    ending = rng.choice(ENDINGS).format(total)
    return f"{arithmetic.steps(terms)} {ending}" if rng.random() < 0.6 else ending


def _sum(rng: random.Random) -> str:
    """One sum as a document."""
    terms = arithmetic.terms_of(rng, rng.choice((2, 2, 3, 3, 4)), "train")
    question, _ = arithmetic.ask(rng, terms)
    form = rng.random()
    if form < 0.5:
        return f"Question: {question}\nAnswer: {_answer(rng, terms)}"
    if form < 0.7:
        return f"Problem. {question}\nSolution. {_answer(rng, terms)}"
    if form < 0.8:
        return f"{question} {_answer(rng, terms)}"
    if form < 0.9:
        return f"We want {' + '.join(map(str, terms))}. {arithmetic.steps(terms)}"
    others = [arithmetic.ask(rng, arithmetic.terms_of(rng, rng.choice((2, 3)), "train"))[0] for _ in range(2)]
    return "Exercises\n" + "\n".join(f"{i}) {q}" for i, q in enumerate([question, *others], 1))


def _facts(rng: random.Random) -> str:
    """A few lines of a table: numbers in words, or sums of two terms with larger left sides."""
    if rng.random() < 0.25:
        numbers = rng.sample(range(10, 100), 6)
        return "\n".join(f"{arithmetic.in_words(n)} is {n}" for n in numbers)
    rows = []
    for _ in range(8):
        a, b = arithmetic.terms_of(rng, 2, "train")
        a += 100 * rng.randrange(0, 3)
        rows.append(f"{a} + {b} = {a + b}")
    return "\n".join(rows)


def _rewriting(rng: random.Random) -> str:
    """A rewriting request, answered in one of several formats, or a list of requests."""
    words = rewrite.words_of(rng, rng.choice((3, 3, 4, 4, 5)), "train")
    order, style = rng.choice(list(rewrite.ORDERS)), rng.choice(list(rewrite.STYLES))
    request, done = rewrite.ask(rng, words, order, style), rewrite.rewritten(words, order, style)
    form = rng.random()
    if form < 0.4:
        return f"Question: {request}\nAnswer: {done}"
    if form < 0.7:
        return f"Question: {request}\nAnswer: {rng.choice(OPENINGS)} {done}"
    return f"{request}\n{done}"


def _library(rng: random.Random, files: list[Path]) -> str:
    """Some twenty lines of a module of the standard library."""
    while True:
        lines = rng.choice(files).read_text(encoding="utf-8", errors="replace").splitlines()
        start = rng.randrange(max(1, len(lines) - 20))
        text = "\n".join(lines[start : start + 20]).strip()
        if text:
            return text[:800]


def _word_table(rng: random.Random) -> str:
    """Rows of words beside what became of them, under one order and style."""
    order, style = rng.choice(list(rewrite.ORDERS)), rng.choice(list(rewrite.STYLES))
    rows = [rewrite.words_of(rng, rng.choice((3, 4, 5)), "train") for _ in range(6)]
    head = f"Words {rewrite.ORDERS[order][0]}{rewrite.STYLES[style][0]}"
    return "\n".join([head, *(f"{' '.join(words)}: {rewrite.rewritten(words, order, style)}" for words in rows)])


def documents(seed: int, words: float = 0.285) -> Iterator[str]:
    """An endless stream of documents, the same for a seed and a Python version; a share of them, `words`, is about
    words, the rest about sums but for a little Python."""
    rng = random.Random(f"nano {seed}")
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    tables = words > 0.285
    while True:
        kind = rng.random()
        if kind < (0.985 - words) * 0.58 / 0.70:
            yield _sum(rng)
        elif kind < 0.985 - words:
            yield _facts(rng)
        elif kind < 0.985:
            yield _word_table(rng) if tables and rng.random() < 0.5 else _rewriting(rng)
        else:
            yield _library(rng, files)


# What a pretrain stage's `text` may name. The second is for a stage that follows the first: a model this small
# learns to copy words late, and needs more of them by then.
TEXTS: dict[str, Callable[[int], Iterator[str]]] = {"nano": documents, "nano-words": partial(documents, words=0.6)}
