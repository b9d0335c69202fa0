"""Intervals against known values, brute force and simulation."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.stats import Interval, clustered, paired_difference, pass_at_k, wilson


# Newcombe (1998), Statistics in Medicine 17, table I, method 3.
@pytest.mark.parametrize(
    "successes, n, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_values(successes, n, low, high):
    value, got_low, got_high = wilson(successes, n)
    assert value == successes / n
    assert got_low == pytest.approx(low, abs=5e-5) and got_high == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_value_and_is_never_of_zero_width(case):
    successes, n = case
    value, low, high = wilson(successes, n)
    assert 0.0 <= low <= value <= high <= 1.0 and low < high
    mirrored = wilson(n - successes, n)
    assert (mirrored.low, mirrored.high) == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_wilson_of_nothing_knows_nothing():
    value, low, high = wilson(0, 0)
    assert math.isnan(value) and (low, high) == (0.0, 1.0)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_wilson_covers_about_95_percent(p):
    n = 60
    chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    covered = sum(c for k, c in enumerate(chances) if wilson(k, n).low <= p <= wilson(k, n).high)
    assert 0.92 < covered < 0.99


def width(interval: Interval) -> float:
    return interval.high - interval.low


rates_of = st.lists(st.integers(0, 8), min_size=1, max_size=50)


@given(rates_of)
def test_clustered_lies_between_independent_draws_and_independent_prompts(counts):
    rates, samples = [c / 8 for c in counts], 8
    got = clustered(rates, samples)
    n, right = len(rates), sum(rates)
    assert got.value == pytest.approx(np.mean(rates))
    assert width(got) > 0
    assert width(wilson(right * samples, n * samples)) - 1e-9 <= width(got) <= width(wilson(right, n)) + 1e-9


def test_clustered_is_wide_for_prompts_that_are_all_or_nothing_and_narrow_for_even_ones():
    divided, even = clustered([0.0, 1.0] * 50, 8), clustered([0.375, 0.625] * 50, 8)
    # The sample variance of 0/1 rates has n - 1 below it: an effective size of 99, not 100.
    assert width(divided) == pytest.approx(width(wilson(50, 100)), rel=1e-2)
    assert width(even) == pytest.approx(width(wilson(400, 800)), rel=1e-6)
    assert width(clustered([], 8)) == 1.0


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_pass_at_k_against_every_subset(n):
    for correct in range(n + 1):
        draws = [i < correct for i in range(n)]
        for k in range(1, n + 1):
            subsets = list(combinations(draws, k))
            assert pass_at_k(correct, n, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(1, 4, k)


scores = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40)


@given(scores)
def test_paired_difference_holds_its_mean_and_turns_round_with_its_sides(pairs):
    after, before = zip(*pairs, strict=True)
    there, back = (paired_difference(*sides, draws=500) for sides in ((after, before), (before, after)))
    assert there.value == pytest.approx(np.mean(after) - np.mean(before), abs=1e-9)
    assert there.low - 1e-9 <= there.value <= there.high + 1e-9
    assert tuple(there) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-9)


def test_paired_difference_against_the_normal_approximation_and_its_pairing():
    rng = np.random.default_rng(1)
    before = rng.random(400)
    after = before + rng.normal(0.05, 0.1, 400)
    value, low, high = paired_difference(after, before)
    half = 1.96 * (after - before).std(ddof=1) / 20
    assert value - low == pytest.approx(half, rel=0.06) and high - value == pytest.approx(half, rel=0.06)
    unpaired = paired_difference(rng.permutation(after), before)
    assert width(unpaired) > 2 * (high - low)


def test_paired_difference_wants_pairs():
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([1, 0], [1])
    assert all(math.isnan(x) for x in paired_difference([], []))
