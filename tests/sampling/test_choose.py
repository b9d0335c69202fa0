"""Draws follow the distribution they claim, and depend on their own seed and position alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strop.sampling import choose as module
from strop.sampling.choose import choose, nucleus, uniforms

DRAWS = 100_000


def random_logits(rows: int, vocab: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


# Critical values of chi-square at p = 1e-5: 60.2 for 19 degrees of freedom, 125 for 63.
@pytest.mark.parametrize("by", ["seed", "position"])
@pytest.mark.parametrize("temperature, top_p", [(1, None), (0.5, None), (2, None), (1, 0.8), (1.3, 0.5)])
def test_draws_follow_the_softmax(by, temperature, top_p):
    logits = random_logits(1, 20, scale=1.0)
    n, fixed = torch.arange(DRAWS), torch.full((DRAWS,), 123)
    u = uniforms(n, fixed) if by == "seed" else uniforms(fixed, n)
    rows = (logits.expand(DRAWS, -1), torch.full((DRAWS,), float(temperature)))
    tokens, _, _ = choose(*rows, None if top_p is None else torch.full((DRAWS,), top_p), u)
    p = torch.softmax(logits[0].double() / temperature, -1)
    if top_p is not None:
        order = p.argsort(descending=True)
        kept = order[: int((p[order].cumsum(0) < top_p).sum()) + 1]
        p = torch.zeros_like(p).index_copy(0, kept, p[kept] / p[kept].sum())
        assert 1 < len(kept) < 20
    counts = torch.bincount(tokens, minlength=20).double()
    assert counts[p == 0].sum() == 0
    assert chi_square(counts[p > 0], p[p > 0] * DRAWS) < 60


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, 1), (-1, 1), (1 << 32, 0), (0, 1 << 20)])
def test_neighbouring_seeds_and_positions_are_independent(step):
    seeds, positions = torch.arange(DRAWS) // 100 + (5 << 50), torch.arange(DRAWS) % 100
    a, b = uniforms(seeds, positions), uniforms(seeds + step[0], positions + step[1])
    cells = torch.bincount((a * 8).long() * 8 + (b * 8).long(), minlength=64).double()
    assert chi_square(cells, torch.full((64,), DRAWS / 64).double()) < 125


def test_uniforms_lie_strictly_between_0_and_1_and_spread(monkeypatch):
    u = uniforms(torch.arange(1 << 20), torch.zeros(1 << 20, dtype=torch.int64))
    assert 0 < u.min() < 1e-5 and 1 - 1e-5 < u.max() < 1 and len(u.unique()) > 900_000
    for bits in (0, -1, (1 << 63) - 1):
        monkeypatch.setattr(module, "_mix", lambda x, bits=bits: torch.full_like(x, bits))
        assert 0 < uniforms(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)) < 1


def test_a_uniform_depends_on_its_own_seed_and_position_alone():
    seeds, positions = torch.arange(50) * 977 - 9000, torch.arange(50) * 13
    together = uniforms(seeds, positions)
    alone = torch.cat([uniforms(seeds[i : i + 1], positions[i : i + 1]) for i in range(50)])
    assert torch.equal(together, alone) and len(together.unique()) == 50


@given(st.integers(0, 10_000), st.floats(0.01, 0.999), st.sampled_from([0.2, 1.0, 4.0]))
def test_a_nucleus_is_the_smallest_set_that_reaches_its_mass(seed, top_p, scale):
    logprobs = random_logits(1, 40, seed, scale).log_softmax(-1)
    kept_logprobs = nucleus(logprobs, torch.tensor([top_p]))[0]
    kept, p = kept_logprobs > -torch.inf, logprobs[0].exp()
    assert p[kept].sum() >= top_p - 1e-5
    assert p[kept].sum() - p[kept].min() < top_p + 1e-5
    assert kept.all() or p[kept].min() >= p[~kept].max()
    assert torch.allclose(kept_logprobs[kept].exp(), p[kept] / p[kept].sum(), atol=1e-5)


@pytest.mark.parametrize("top_p", [None, 0.9])
def test_greedy_rows_take_the_argmax_beside_rows_that_sample(top_p):
    logits = random_logits(40, 30)
    temperature = torch.tensor([0.0, 1.0]).repeat(20)
    filters = None if top_p is None else torch.full((40,), top_p)
    tokens, logprobs, behavior = choose(logits, temperature, filters, torch.full((40,), 0.999))
    greedy = temperature == 0
    assert torch.equal(tokens[greedy], logits[greedy].argmax(-1))
    assert (tokens[~greedy] != logits[~greedy].argmax(-1)).any()
    expected = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert torch.equal(logprobs, expected)
    if behavior is not None:
        assert torch.equal(behavior[greedy], logprobs[greedy])
        assert (behavior[~greedy] > logprobs[~greedy]).all()


def test_logprobs_are_at_the_sampling_temperature():
    logits, temperature = random_logits(30, 25), torch.linspace(0.2, 3, 30)
    tokens, logprobs, behavior = choose(logits, temperature, None, torch.full((30,), 0.4))
    expected = (logits / temperature[:, None]).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert torch.equal(logprobs, expected) and behavior is None


def test_a_row_draws_the_same_whatever_the_other_rows_are():
    """Bit for bit, rows that filter nothing beside rows that do included."""
    logits, u = random_logits(64, 300, scale=4.0), uniforms(torch.arange(64), torch.arange(64))
    temperature = torch.tensor([0.0, 0.5, 1.0, 1.5]).repeat(16)
    top_p = torch.tensor([1.0, 0.9, 0.5]).repeat(22)[:64]
    tokens, logprobs, behavior = choose(logits, temperature, top_p, u)
    for i in range(64):
        row = slice(i, i + 1)
        alone = choose(logits[row], temperature[row], top_p[row] if top_p[i] < 1 else None, u[row])
        assert tokens[i] == alone[0] and logprobs[i] == alone[1]
        assert behavior[i] == (alone[1] if alone[2] is None else alone[2])


@pytest.mark.parametrize("vocab", [2, 50, 5000])
@pytest.mark.parametrize("impossible", [-torch.inf, -300.0])
def test_no_token_of_probability_zero_is_ever_drawn(vocab, impossible):
    rows = 400
    logits = random_logits(rows, vocab)
    logits[:, vocab // 2 :: 2] = impossible
    logits[:, -1] = impossible
    logits[::2, 0] = impossible if vocab > 2 else 0.0
    edge = torch.tensor([2.0**-24, 1e-6, 0.5, 1 - 2.0**-23, 1 - 2.0**-24])
    for top_p in (None, torch.full((rows,), 0.95)):
        tokens, logprobs, _ = choose(logits, torch.ones(rows), top_p, edge.repeat(rows // 5))
        assert (logprobs.exp() > 0).all() and (logits.gather(-1, tokens[:, None]) > -200).all()


def test_a_uniform_rounded_up_to_1_still_draws_a_token_that_has_mass():
    tokens, _, _ = choose(torch.tensor([[0.0, 1.0, 2.0, -500.0]]), torch.ones(1), None, torch.ones(1))
    assert tokens.item() == 2
