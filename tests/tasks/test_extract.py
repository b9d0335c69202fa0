"""What counts as the answer in a text, and the near misses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.tasks.extract import after_thinking, last_number, number_verdict, same_number, stated_number

STATED = [
    ("The answer is 42.", "42"),
    ("the ANSWER IS: 42", "42"),
    ("So the final answer is $18.", "18"),
    ("The answer is -7", "-7"),
    ("The answer is 3.50.", "3.50"),
    ("The answer is 1,234,567.", "1,234,567"),
    ("The answer is 1,234.5", "1,234.5"),
    ("12 + 34 = 46\n#### 46", "46"),
    ("####46", "46"),
    ("#### -1,000", "-1,000"),
    (r"Thus \boxed{42}", "42"),
    (r"Thus \boxed{ -4.5 }$.", "-4.5"),
    (r"Thus \boxed{\$18}", "18"),
    (r"\boxed{7} = 3 + 4", "7"),
    ("The answer is 42, because 6 * 7 = 42", "42"),
    ("The answer is 12 apples.", "12"),
    ("The answer is 5\n- 3 of them are red", "5"),
    # the last one wins, in whatever form
    ("The answer is 1. No, the answer is 2.", "2"),
    (r"\boxed{1} and then #### 2", "2"),
    (r"#### 2 and then \boxed{1}", "1"),
    # thinking does not count
    ("<think>The answer is 1</think>The answer is 2", "2"),
    ("<think>a</think>The answer is 1<think>b</think>The answer is 2", "2"),
]
UNSTATED = [
    "",
    "42",
    "It is 42.",
    "The answer is unknown.",
    "The answer is not 42",
    "The answer is forty-two",
    "<think>The answer is 1</think>It is 2",
    "### 42",
    r"\boxed{}",
    r"\boxed{x = 4}",
    r"\boxed{3/4}",
    # a part of something longer is not the answer
    "The answer is 12,34",
    "The answer is 1,23,456",
    "The answer is 12,3456",
    "The answer is 1.2.3",
    "The answer is 3/4",
    "The answer is 3 / 4",
    "The answer is 5e3",
    "The answer is 10^6",
    "The answer is 3:30",
    "The answer is 12 + 34 = 46",
    "The answer is 10-12",
]


@pytest.mark.parametrize("text, number", STATED)
def test_strict_takes_the_last_stated_number(text, number):
    assert stated_number(text) == number


@pytest.mark.parametrize("text", UNSTATED)
def test_strict_takes_no_other_number(text):
    assert stated_number(text) is None


@pytest.mark.parametrize(
    "text, number",
    [
        ("12 + 34 = 46", "46"),
        ("It is 46.", "46"),
        ("The answer is 46, I think", "46"),
        ("from 5 to 1,234,567.89!", "1,234,567.89"),
        ("minus: -3", "-3"),
        ("(-3)", "-3"),
        ("x=-3", "-3"),
        ("12-5", "5"),
        ("(12)-5", "5"),
        ("on 2026-11-21", "21"),
        ("0.5", "0.5"),
        ("<think>1</think>2<think>3</think>none 4 none", "4"),
        ("<think>1</think>", None),
        ("no number", None),
        ("", None),
    ],
)
def test_flexible_takes_the_last_number(text, number):
    assert last_number(text) == number


def test_thinking_is_cut_at_its_last_end():
    assert after_thinking("a</think>b</think>c") == "c"
    assert after_thinking("a\nb</think>\nc") == "\nc"
    assert after_thinking("no thinking") == "no thinking"


@pytest.mark.parametrize(
    "a, b, same",
    [
        ("1,234", "1234", True),
        ("3.50", "3.5", True),
        ("007", "7", True),
        ("-0", "0", True),
        ("12", "-12", False),
        ("1.0000000000000000001", "1", False),  # as decimals: fp64 would call them equal
        ("12", "1", False),
        (None, "1", False),
        ("1", None, False),
    ],
)
def test_numbers_are_compared_as_decimals(a, b, same):
    assert same_number(a, b) is same


@pytest.mark.parametrize(
    "text, strict, flexible",
    [
        ("12 + 34 = 46. The answer is 46.", 1, 1),
        ("It is 46.", 0, 1),
        ("The answer is 46. That is 12 more than 34.", 1, 0),
        ("The answer is 460.", 0, 0),
        ("The answer is 4.6", 0, 0),
        ("", 0, 0),
    ],
)
def test_a_numeric_verdict_is_strict_and_holds_both_extractions(text, strict, flexible):
    verdict = number_verdict("46", text)
    assert verdict.correctness == strict
    assert verdict.parts == {"strict": strict, "flexible": flexible}


def test_an_unreadable_gold_is_invalid():
    assert "holds no number" in number_verdict("many", "The answer is 3.").invalid


styles, ends = st.sampled_from(["{}", "{:,}", "{}.00"]), st.sampled_from(["", ".", "!", "\n"])


@given(st.integers(-(10**12), 10**12), styles, ends)
def test_any_integer_is_found_again_however_it_is_written(n, style, end):
    written = style.format(n)
    for form in (f"The answer is {written}{end}", f"1 2 3 #### {written}{end}", rf"\boxed{{{written}}}{end}"):
        assert same_number(stated_number(form), str(n))
        assert same_number(last_number(form), str(n))
        assert not same_number(stated_number(form), str(n + 1))


@given(st.text())
def test_no_text_makes_extraction_fail(text):
    for answer in (stated_number(text), last_number(text)):
        assert answer is None or same_number(answer, answer)
