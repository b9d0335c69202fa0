"""Supervised fine-tuning: cross-entropy on the policy's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field
from torch import Tensor

from strop.errors import StropError
from strop.ledger import Ledger
from strop.model.renderer import Renderer
from strop.model.scoring import Batch
from strop.sampling.policy import Policy
from strop.train.loop import Progress, StageDir, Step, TrainConfig, train
from strop.types import Author, Datum, Message


class SFTConfig(TrainConfig):
    """Fine-tuning on conversations."""

    epochs: int = Field(2, ge=0)
    batch_size: int = Field(32, gt=0, description="conversations per update")
    max_length: int = Field(1024, gt=1, description="longer conversations are an error, not cut")


class CrossEntropy:
    """−log p of each active target, times its weight, over the step's total weight."""

    temperature = 1.0

    def denominator(self, datums: Sequence[Datum]) -> float:
        return float(sum(d.fields["weight"].sum() for d in datums))

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        numerator = -(batch.fields["weight"] * logprobs).sum()
        return numerator, {"entropy": entropy.detach().sum()}


def conversation_datum(renderer: Renderer, messages: Sequence[Message]) -> Datum:
    """A conversation as a training row: weight 1 on what the assistant wrote, stop tokens included."""
    ids, authors = renderer.render(messages)
    return Datum.from_tokens(ids, [1.0 if a is Author.POLICY else 0.0 for a in authors])


def epochs(datums: Sequence[Datum], batch_size: int, seed: int) -> Callable[[int], Step]:
    """A source that goes through `datums` in batches, shuffled anew each epoch by the seed alone."""
    objective = CrossEntropy()
    per_epoch = -(-len(datums) // batch_size)

    def source(step: int) -> Step:
        epoch, i = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(datums))
        batch = [datums[j] for j in order[i * batch_size : (i + 1) * batch_size]]
        return Step(batch, objective.denominator(batch))

    return source


def sft(
    policy: Policy,
    conversations: Sequence[Sequence[Message]],
    config: SFTConfig,
    stage: StageDir,
    seed: int = 0,
    progress: Progress = lambda step, steps, metrics: None,
) -> Ledger:
    """Fine-tune `policy` in place. Raises StropError for a conversation longer than the context."""
    if not conversations:
        raise StropError("sft: no conversations to learn from")
    datums = [conversation_datum(policy.renderer, messages) for messages in conversations]
    longest = min(config.max_length, policy.decoder.shape.max_positions)
    for row, datum in enumerate(datums, 1):
        if len(datum) + 1 > longest:
            raise StropError(f"sft: row {row} has {len(datum) + 1} tokens; at most {longest} fit (max_length, context)")
    steps = config.epochs * -(-len(datums) // config.batch_size)
    source = epochs(datums, config.batch_size, seed)
    return train(policy, source, CrossEntropy(), config, steps, stage, progress)
