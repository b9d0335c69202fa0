"""Supervised fine-tuning: cross-entropy on the policy's own tokens."""

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field
from torch import Tensor

from strop.errors import StropError
from strop.ledger import Ledger
from strop.model.renderer import Renderer
from strop.model.scoring import Batch
from strop.sampling.policy import Policy
from strop.train.loop import Stage, Step, TrainConfig, train
from strop.types import Author, Datum, Message


class SFTConfig(TrainConfig):
    """Fine-tuning on conversations."""

    epochs: int = Field(2, ge=0)
    batch_size: int = Field(32, gt=0, description="conversations per update")
    max_length: int = Field(1024, gt=1, description="longer conversations are an error, not cut")


class CrossEntropy:
    """−log p of each active target, times its weight."""

    temperature = 1.0

    def __call__(self, logprobs: Tensor, entropy: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return -(batch.fields["weight"] * logprobs).sum(), {"entropy": entropy.detach().sum()}


def weighed(batch: Sequence[Datum]) -> Step:
    """A step whose loss is a mean over the batch's total weight: over tokens, whatever row they stand in."""
    return Step(batch, float(sum(d.fields["weight"].sum() for d in batch)))


def conversation_datum(renderer: Renderer, messages: Sequence[Message]) -> Datum:
    """A conversation as a training row: weight 1 on what the assistant wrote, stop tokens included."""
    ids, authors = renderer.render(messages)
    return Datum.from_tokens(ids, [float(a is Author.POLICY) for a in authors])


def epochs(datums: Sequence[Datum], batch_size: int, seed: int) -> Callable[[int], Step]:
    """A source that goes through `datums` in batches, shuffled anew each epoch by the seed alone."""
    per_epoch = -(-len(datums) // batch_size)

    def source(step: int) -> Step:
        epoch, i = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(datums))
        return weighed([datums[j] for j in order[i * batch_size : (i + 1) * batch_size]])

    return source


def sft(policy: Policy, conversations: Sequence[Sequence[Message]], config: SFTConfig, stage: Stage) -> Ledger:
    """Fine-tune `policy` in place. Raises StropError for a conversation longer than the context."""
    if not conversations:
        raise StropError("sft: no conversations to learn from")
    datums = [conversation_datum(policy.renderer, messages) for messages in conversations]
    room = min(config.max_length, policy.decoder.shape.max_positions)
    for row, datum in enumerate(datums, 1):
        if len(datum) >= room:
            raise StropError(f"sft: row {row} has {len(datum) + 1} tokens; {room} fit (max_length, context)")
    steps = config.epochs * -(-len(datums) // config.batch_size)
    return train(policy, epochs(datums, config.batch_size, stage.seed), CrossEntropy(), config, steps, stage)
