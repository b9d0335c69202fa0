"""Pretraining: a tokenizer with single digits, every token learnt, and supplies that need no replay."""

import json
import re

import numpy as np
import pytest
import torch

from strop.errors import StropError
from strop.model.renderer import Renderer
from strop.train.loop import Stage
from strop.train.pretrain import NewModel, PretrainConfig, document_datum, new_policy, pretrain

TEXTS = ["What is 12 + 345?\nThe answer is 357.", "A strop gives a blade its last edge, 100 times."] * 5
NEW = NewModel(vocab=300, hidden=16, intermediate=24, layers=1, heads=2, context=64)


@pytest.fixture(scope="module")
def fresh():
    return new_policy(NEW, TEXTS, seed=0)


@pytest.mark.parametrize("text", ["12 + 345 = 357.", "x1000000y", "a 7, b  88\n99", "100 times 12"])
def test_digits_stand_alone_and_text_comes_back(fresh, text):
    pieces = fresh.renderer.pieces(fresh.renderer.encode(text))
    assert "".join(pieces) == text
    assert all(re.fullmatch(r" ?\d|\D+", piece) for piece in pieces)


def test_a_fresh_model_has_the_shape_asked_for_and_the_seeds_weights(fresh, weights):
    shape = fresh.decoder.shape
    assert (shape.vocab, shape.hidden, shape.layers, shape.max_positions, shape.tied) == (300, 16, 1, 64, True)
    assert torch.equal(weights(fresh), weights(new_policy(NEW, TEXTS, seed=0)))
    assert not torch.equal(weights(fresh), weights(new_policy(NEW, TEXTS, seed=1)))


@pytest.mark.parametrize("most", [5, 64])
def test_a_document_is_learnt_whole_between_two_ends(tiny_tokenizer, most):
    renderer = Renderer(tiny_tokenizer)
    end = tiny_tokenizer.eos_token_id
    datum = document_datum(renderer, TEXTS[0], most)
    tokens = [end, *renderer.encode(TEXTS[0]), end][:most]
    assert [datum.ids[0], *datum.targets] == tokens and (datum.fields["weight"] == 1).all()


def endless(calls: list[int]):
    """An endless supply; `calls` gets every seed that it is asked for."""

    def documents(seed):
        calls.append(seed)
        rng = np.random.default_rng(seed)
        while True:
            yield f"What is {rng.integers(10, 99)} + {rng.integers(10, 99)}?"

    return documents


@pytest.mark.parametrize("supply", ["endless", "list"])
def test_loss_falls_on_a_list_and_on_an_endless_supply(policy, tmp_path, supply):
    calls = []
    config = PretrainConfig(steps=15, batch_size=8, lr=1e-2)
    pretrain(policy, TEXTS if supply == "list" else endless(calls), config, Stage(tmp_path, seed=3))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 15 and losses[-1] < 0.7 * losses[0]
    assert calls == ([] if supply == "list" else [(3 << 24) + step for step in range(15)])


@pytest.mark.parametrize("text", [[" ".join(TEXTS)], lambda seed: iter([" ".join(TEXTS)])])
def test_a_document_longer_than_the_context_is_cut_to_it(fresh, tmp_path, text):
    ledger = pretrain(fresh.copy(), text, PretrainConfig(steps=1, batch_size=1, max_length=400), Stage(tmp_path))
    assert ledger.trained_tokens == NEW.context - 1


def test_no_text_is_an_error(policy, tmp_path):
    with pytest.raises(StropError, match="no text to learn from"):
        pretrain(policy, [], PretrainConfig(), Stage(tmp_path))
