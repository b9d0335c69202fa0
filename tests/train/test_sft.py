"""SFT: exactly what the assistant wrote is learnt, its stop token included."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strop.errors import StropError
from strop.model.renderer import Renderer
from strop.train.loop import Stage
from strop.train.sft import SFTConfig, conversation_datum, epochs, sft
from strop.types import Datum, Message

ROWS = [(Message("user", f"What is {i} + {i}?"), Message("assistant", f"The answer is {2 * i}.")) for i in range(8)]


@pytest.mark.parametrize(
    "template, learnt",
    [
        ("plain", [" 46.<|endoftext|>", " It is 46 books.<|endoftext|>"]),
        ("chatml", ["46.<|im_end|>", "It is 46 books.<|im_end|>"]),
        ("chatml-marked", ["46.<|im_end|>", "It is 46 books.<|im_end|>"]),
    ],
)
def test_the_mask_is_the_assistants_words_and_stops(make_tokenizer, template, learnt):
    renderer = Renderer(make_tokenizer(template))
    turns = [("system", "Say how."), ("user", "What is 12 + 34?"), ("assistant", "46.")]
    turns += [("user", "And in 46 words?"), ("assistant", "It is 46 books.")]
    messages = [Message(*turn) for turn in turns]
    datum = conversation_datum(renderer, messages)
    decoded = renderer.tokenizer.decode
    assert decoded([datum.ids[0], *datum.targets]) == renderer.text(messages)
    runs, before = [], 0.0
    for target, weight in zip(datum.targets, datum.fields["weight"], strict=True):
        assert weight in (0.0, 1.0)
        if weight and not before:
            runs.append([])
        if weight:
            runs[-1].append(target)
        before = weight
    assert [decoded(run) for run in runs] == learnt


@pytest.mark.parametrize("settings, room", [({"max_length": 40}, 40), ({}, 128)])
@pytest.mark.parametrize("row", [1, 3])
def test_a_row_that_does_not_fit_is_named(policy, weights, tmp_path, settings, room, row):
    rows = ROWS[:3]
    rows[row - 1] = (Message("user", "What is this? " * 20), Message("assistant", "A row."))
    with pytest.raises(StropError, match=rf"^sft: row {row} has \d+ tokens; {room} fit \(max_length, context\)$"):
        sft(policy, rows, SFTConfig(**settings), Stage(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_row_that_just_fits_is_learnt(policy, tmp_path):
    tokens = len(policy.renderer.render(ROWS[0])[0])
    sft(policy, ROWS[:1], SFTConfig(max_length=tokens, epochs=1), Stage(tmp_path))
    with pytest.raises(StropError, match=f"row 1 has {tokens} tokens; {tokens - 1} fit"):
        sft(policy, ROWS[:1], SFTConfig(max_length=tokens - 1), Stage(tmp_path))


def test_no_rows_are_an_error(policy, tmp_path):
    with pytest.raises(StropError, match="no conversations"):
        sft(policy, [], SFTConfig(), Stage(tmp_path))


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_holds_every_row_once_in_an_order_of_its_own(size, batch_size, seed):
    source = epochs([Datum.from_tokens([i, i], [1.0, 1.0]) for i in range(size)], batch_size, seed)
    steps = -(-size // batch_size)
    orders = []
    for epoch in range(2):
        batches = [[int(d.ids[0]) for d in source(epoch * steps + i).datums] for i in range(steps)]
        assert all(len(batch) == batch_size for batch in batches[:-1])
        orders.append(sum(batches, []))
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(size))
    assert size < 8 or orders[0] != orders[1]


def test_loss_falls(policy, tmp_path):
    ledger = sft(policy, ROWS, SFTConfig(epochs=10, batch_size=4, lr=1e-2), Stage(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert ledger.trained_tokens == 10 * sum(len(conversation_datum(policy.renderer, row)) for row in ROWS)
