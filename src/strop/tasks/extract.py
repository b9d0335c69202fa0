"""The final number in a text. Strict wants the answer stated; flexible takes the last number."""

import re
from decimal import Decimal

from strop.types import Verdict

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_LAST = re.compile(rf"(?:(?<![\w)])-)?{_NUMBER}")  # the minus of 12-5 is not a sign
_CUT = r"(?![\d,]*\d|\.\d|e[-+]?\d|:\d| ?[-+*/^=] ?\d)"  # what goes on (3/4, 5e3, 3 + 4) was not stated
_STATED = re.compile(
    rf"\\boxed\{{\s*\\?\$?(-?{_NUMBER})\s*\}}|(?:####|answer is:?)\s*\\?\$?(-?{_NUMBER}){_CUT}", re.IGNORECASE
)


def after_thinking(text: str) -> str:
    """The text behind the last closed thinking part."""
    return text.rpartition("</think>")[2]


def stated_number(text: str) -> str | None:
    """Strict: the last number stated as "the answer is N", `#### N` or `\\boxed{N}`."""
    found = _STATED.findall(after_thinking(text))
    return next(group for group in found[-1] if group) if found else None


def last_number(text: str) -> str | None:
    """Flexible: the last number anywhere in the text."""
    found = _LAST.findall(after_thinking(text))
    return found[-1] if found else None


def same_number(a: str | None, b: str | None) -> bool:
    """Equal as decimal numbers, thousands separators ignored."""
    return a is not None and b is not None and Decimal(a.replace(",", "")) == Decimal(b.replace(",", ""))


def number_verdict(gold: str, text: str) -> Verdict:
    """Verdict of a numeric answer; its correctness is the strict one, `parts` hold both."""
    number = last_number(gold)
    if number is None:
        return Verdict.unjudged(f"the gold answer {gold!r} holds no number")
    strict, flexible = (float(same_number(x, number)) for x in (stated_number(text), last_number(text)))
    return Verdict(strict, parts={"strict": strict, "flexible": flexible})
