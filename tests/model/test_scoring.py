"""Batches of rows: nothing lost, nothing split, and no number that depends on how they were cut."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strop.model.checkpoint import load_decoder
from strop.model.scoring import collate, micro_batches, predict
from strop.types import Datum

CPU = torch.device("cpu")


def row(length: int, group: int | None = None, tag: float = 0.0) -> Datum:
    return Datum.from_tokens([1] * (length + 1), [1.0] * (length + 1), group, tag=tag)


rows_of = st.lists(st.tuples(st.integers(1, 60), st.none() | st.integers(0, 4)), max_size=30)


@given(rows_of, st.integers(1, 400))
def test_micro_batches_hold_every_row_once_groups_whole_and_few_padded_tokens(spec, max_tokens):
    datums = [row(length, group, tag=i) for i, (length, group) in enumerate(spec)]
    batches = list(micro_batches(datums, max_tokens))
    seen = [int(d.fields["tag"][0]) for batch in batches for d in batch]
    assert sorted(seen) == list(range(len(datums)))
    home = {}
    for n, batch in enumerate(batches):
        assert batch
        groups = [d.group if d.group is not None else ("alone", i) for i, d in enumerate(batch)]
        padded = max(len(d) for d in batch) * len(batch)
        assert padded <= max_tokens or len(set(groups)) == 1
        for d in batch:
            assert d.group is None or home.setdefault(d.group, n) == n
    for group in {d.group for d in datums} - {None}:  # a group's rows stay together, in order
        tags = [t for t in seen if spec[t][1] == group]
        assert tags == sorted(tags) and seen.index(tags[-1]) - seen.index(tags[0]) == len(tags) - 1


def test_micro_batches_put_like_lengths_together():
    batches = list(micro_batches([row(n) for n in (50, 3, 49, 4, 2)], 100))
    assert [[len(d) for d in batch] for batch in batches] == [[2, 3, 4], [49, 50]]


def test_collate_picks_the_tokens_that_carry_weight():
    first = Datum.from_tokens([5, 6, 7, 8], [9, 0, 1, -2], extra=[0.0, 1.0, 2.0, 3.0])
    second = Datum.from_tokens([3, 4], [0, 0.5], extra=7.0)
    batch = collate([first, second], CPU)
    assert batch.ids.tolist() == [[5, 6, 7], [3, 0, 0]]
    assert batch.where.tolist() == [1, 2, 3]
    assert batch.row.tolist() == [0, 0, 1]
    assert batch.targets.tolist() == [7, 8, 4]
    assert batch.fields["weight"].tolist() == [1, -2, 0.5]
    assert batch.fields["extra"].tolist() == [2, 3, 7]


@pytest.fixture(scope="module")
def decoder(random_checkpoint):
    return load_decoder(random_checkpoint("qwen3", tie_word_embeddings=True))


def random_rows(count: int) -> list[Datum]:
    rng = np.random.default_rng(0)
    out = []
    for i in range(count):
        length = int(rng.integers(2, 40))
        weight = rng.normal(size=length) * (rng.random(length) < 0.6)
        out.append(Datum.from_tokens(rng.integers(0, 350, length), weight, group=i // 3 if i < 6 else None))
    return out


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@torch.no_grad()
def test_predictions_are_those_of_each_row_alone(decoder, temperature):
    datums = random_rows(6)
    logprobs, entropy = predict(decoder, collate(datums, CPU), temperature)
    expected, expected_entropy = [], []
    for d in datums:
        logits = decoder.lm_head(decoder(torch.from_numpy(d.ids)[None]))[0] / temperature
        distribution = torch.distributions.Categorical(logits=logits)
        active = torch.from_numpy(d.fields["weight"] != 0)
        expected.append(distribution.log_prob(torch.from_numpy(d.targets))[active])
        expected_entropy.append(distribution.entropy()[active])
    assert torch.allclose(logprobs, torch.cat(expected), atol=1e-4)
    assert torch.allclose(entropy, torch.cat(expected_entropy), atol=1e-4)


def loss_and_gradient(decoder, datums, max_tokens):
    decoder.zero_grad()
    total = 0.0
    for micro in micro_batches(datums, max_tokens):
        batch = collate(micro, CPU)
        logprobs, _ = predict(decoder, batch)
        loss = -(logprobs * batch.fields["weight"]).sum() / 100
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in decoder.named_parameters()}


@pytest.mark.parametrize("max_tokens", [1, 60, 150])
def test_loss_and_gradient_do_not_depend_on_the_cut(decoder, max_tokens):
    datums = random_rows(12)
    assert len(list(micro_batches(datums, max_tokens))) > len(list(micro_batches(datums, 10**6))) == 1
    loss, gradient = loss_and_gradient(decoder, datums, 10**6)
    cut_loss, cut_gradient = loss_and_gradient(decoder, datums, max_tokens)
    assert cut_loss == pytest.approx(loss, abs=1e-5) and abs(loss) > 0.1
    for name, expected in gradient.items():
        scale = float(expected.abs().max())
        assert scale > 0 and torch.allclose(cut_gradient[name], expected, atol=1e-4 * scale), name


def test_a_batch_with_nothing_to_learn_is_a_no_op(decoder):
    silent = Datum.from_tokens([1, 2, 3], [0.0, 0.0, 0.0])
    decoder.zero_grad()
    logprobs, entropy = predict(decoder, collate([silent], CPU))
    (logprobs.sum() + entropy.sum()).backward()
    assert all(p.grad is None or not p.grad.any() for p in decoder.parameters())


def test_a_row_without_weight_leaves_the_others_alone(decoder):
    datums, silent = random_rows(4), Datum.from_tokens([1] * 60, [0.0] * 60)
    _, alone = loss_and_gradient(decoder, datums, 10**6)
    _, beside = loss_and_gradient(decoder, [silent, *datums], 10**6)
    assert all(torch.allclose(alone[n], beside[n], atol=1e-5) for n in alone)
