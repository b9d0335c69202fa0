"""The text that strop-nano is made from: procedural problems and Python's standard library. Like the web it is uneven:
sums worked out, answered at once or left open; nothing is wrong, and `dev` and `test` problems never occur."""

import random
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from strop.tasks import arithmetic, rewrite

ENDINGS = ("{}", "It is {}.", "That makes {}.", "The answer is {}.")
OPENINGS = ("Here it is:", "Sure:", "These are the words:")


def _answer(rng: random.Random, terms: list[int]) -> str:
    ending = rng.choice(ENDINGS).format(sum(terms))
    return f"{arithmetic.steps(terms)} {ending}" if rng.random() < 0.6 else ending


def _sum(rng: random.Random) -> str:
    terms = arithmetic.terms_of(rng, rng.choice((2, 2, 3, 3, 4)), "train")
    question, _ = arithmetic.ask(rng, terms)
    form = rng.random()
    if form < 0.8:
        layout = "Question: {}\nAnswer: {}" if form < 0.5 else "Problem. {}\nSolution. {}" if form < 0.7 else "{} {}"
        return layout.format(question, _answer(rng, terms))
    if form < 0.9:
        return f"We want {' + '.join(map(str, terms))}. {arithmetic.steps(terms)}"
    others = [arithmetic.ask(rng, arithmetic.terms_of(rng, rng.choice((2, 3)), "train"))[0] for _ in range(2)]
    return "Exercises\n" + "\n".join(f"{i}) {q}" for i, q in enumerate([question, *others], 1))


def _facts(rng: random.Random) -> str:
    if rng.random() < 0.25:
        return "\n".join(f"{arithmetic.in_words(n)} is {n}" for n in rng.sample(range(10, 100), 6))
    terms = (arithmetic.terms_of(rng, 2, "train") for _ in range(8))  # drawn one by one, between the hundreds
    rows = ((a + 100 * rng.randrange(0, 3), b) for a, b in terms)
    return "\n".join(f"{a} + {b} = {a + b}" for a, b in rows)


def _rewriting(rng: random.Random) -> str:
    words = rewrite.words_of(rng, rng.choice((3, 3, 4, 4, 5)), "train")
    order, style = rng.choice(list(rewrite.ORDERS)), rng.choice(list(rewrite.STYLES))
    request, done = rewrite.ask(rng, words, order, style), rewrite.rewritten(words, order, style)
    if (form := rng.random()) >= 0.7:
        return f"{request}\n{done}"
    opening = "" if form < 0.4 else f"{rng.choice(OPENINGS)} "
    return f"Question: {request}\nAnswer: {opening}{done}"


def _library(rng: random.Random, files: list[Path]) -> str:
    while True:
        lines = rng.choice(files).read_text(encoding="utf-8", errors="replace").splitlines()
        start = rng.randrange(max(1, len(lines) - 20))
        if text := "\n".join(lines[start : start + 20]).strip():
            return text[:800]


def _word_table(rng: random.Random) -> str:
    order, style = rng.choice(list(rewrite.ORDERS)), rng.choice(list(rewrite.STYLES))
    rows = [rewrite.words_of(rng, rng.choice((3, 4, 5)), "train") for _ in range(6)]
    head = f"Words {rewrite.ORDERS[order][0]}{rewrite.STYLES[style][0]}"
    return "\n".join([head, *(f"{' '.join(words)}: {rewrite.rewritten(words, order, style)}" for words in rows)])


def documents(seed: int, words: float = 0.285) -> Iterator[str]:
    """Endless documents, the same for a seed and a Python version; the share `words` is about words, not sums."""
    rng = random.Random(f"nano {seed}")
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    while True:
        kind = rng.random()
        if kind < (0.985 - words) * 0.58 / 0.70:
            yield _sum(rng)
        elif kind < 0.985 - words:
            yield _facts(rng)
        elif kind < 0.985:
            yield _word_table(rng) if words > 0.285 and rng.random() < 0.5 else _rewriting(rng)
        else:
            yield _library(rng, files)


# A pretrain stage's `text`. The second is for a stage after the first: a model this small learns to copy words late.
TEXTS: dict[str, Callable[[int], Iterator[str]]] = {"nano": documents, "nano-words": partial(documents, words=0.6)}
