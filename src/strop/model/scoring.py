"""Datums to padded batches, and a decoder's log-probabilities of targets. No real token sees padding."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strop.model.decoder import Decoder
from strop.model.head import token_logprobs
from strop.types import Datum


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length T, and their active tokens (weight not 0) flattened to N."""

    ids: Tensor  # int64 [B, T]
    where: Tensor  # int64 [N] into the flattened B·T
    row: Tensor  # int64 [N]
    targets: Tensor  # int64 [N]
    fields: dict[str, Tensor]  # fp32 [N] each


def collate(datums: Sequence[Datum], device: torch.device) -> Batch:
    """Pad datums to their longest and pick out the tokens that carry weight."""
    active = [np.flatnonzero(d.fields["weight"]) for d in datums]
    ids = np.zeros((len(datums), max(len(d) for d in datums)), np.int64)
    for row, d in zip(ids, datums, strict=True):
        row[: len(d)] = d.ids

    def pick(values: Iterable[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([v[a] for v, a in zip(values, active, strict=True)])).to(device)

    where, owner = pick(np.arange(ids.size).reshape(ids.shape)), pick(np.indices(ids.shape)[0])
    fields = {name: pick(d.fields[name] for d in datums) for name in datums[0].fields}
    return Batch(torch.from_numpy(ids).to(device), where, owner, pick(d.targets for d in datums), fields)


def micro_batches(datums: Sequence[Datum], max_tokens: int) -> Iterator[list[Datum]]:
    """Batches of at most `max_tokens` padded tokens (one group at least), shortest first, groups whole."""
    groups: dict[Any, list[Datum]] = {}
    for i, d in enumerate(datums):
        groups.setdefault(("alone", i) if d.group is None else d.group, []).append(d)
    batch: list[Datum] = []
    for rows in sorted(groups.values(), key=lambda rows: max(map(len, rows))):
        longest = max(map(len, [*batch, *rows]))
        if batch and longest * (len(batch) + len(rows)) > max_tokens:
            yield batch
            batch = []
        batch = batch + rows
    if batch:
        yield batch


def predict(decoder: Decoder, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each active target and entropy there, fp32 [N]."""
    hidden = decoder(batch.ids).flatten(0, 1)[batch.where]
    return token_logprobs(hidden, decoder.lm_head.weight.to(hidden.dtype), batch.targets, temperature)
