"""Intervals and differences. Plain arithmetic on counts and arrays; knows nothing of models."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: float, n: float) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927); never of zero width for n > 0."""
    if n <= 0:
        return Interval(math.nan, 0.0, 1.0)
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Interval(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def clustered(rates: Sequence[float], samples: int) -> Interval:
    """Wilson's interval of a mean over prompts, clusters of `samples` draws; their standard error sets its n."""
    x = np.asarray(rates, float)
    if len(x) == 0:
        return wilson(0, 0)
    p, n = float(x.mean()), len(x)
    variance = float(x.var(ddof=1)) / n if n > 1 else 0.0
    effective = min(max(p * (1 - p) / variance if variance > 0 else n, n), n * samples)
    return wilson(p * effective, effective)


def pass_at_k(correct: int, n: int, k: int) -> float:
    """Unbiased chance that at least one of k draws is right, from `correct` of n (Chen et al. 2021)."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {n}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def paired_difference(after: Sequence[float], before: Sequence[float], draws: int = 4000) -> Interval:
    """Mean of after − before over the same prompts, with a bootstrap interval over prompts."""
    if len(after) != len(before):
        raise ValueError(f"paired scores differ in length: {len(after)} and {len(before)}")
    d = np.asarray(after, float) - np.asarray(before, float)
    if len(d) == 0:
        return Interval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(0)
    shape, rounds = (min(500, draws), len(d)), max(1, draws // 500)
    means = [d[rng.integers(0, len(d), shape)].mean(1) for _ in range(rounds)]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(d.mean()), float(low), float(high))
