"""Datums to padded batches, and a decoder's log-probabilities of their targets.

Sampler, scorer and trainer share this one forward, so equal weights give equal log-probs.
Rows are padded to the right under causal attention: no real token sees padding or another row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from strop.model.decoder import Decoder
from strop.model.head import token_logprobs
from strop.types import Datum


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length T, and their active tokens (weight not 0) flattened to N.

    ids int64 [B, T]; where int64 [N] into the flattened B·T; row int64 [N]; targets int64 [N];
    fields fp32 [N] each.
    """

    ids: Tensor
    where: Tensor
    row: Tensor
    targets: Tensor
    fields: dict[str, Tensor]
    rows: int


def collate(datums: Sequence[Datum], device: torch.device) -> Batch:
    """Pad datums to their longest and pick out the tokens that carry weight."""
    length = max(len(d) for d in datums)
    ids = np.zeros((len(datums), length), np.int64)
    for i, d in enumerate(datums):
        ids[i, : len(d)] = d.ids
    active = [np.flatnonzero(d.fields["weight"]) for d in datums]
    where = np.concatenate([i * length + a for i, a in enumerate(active)])
    row = np.repeat(np.arange(len(datums)), [len(a) for a in active])
    targets = np.concatenate([d.targets[a] for d, a in zip(datums, active, strict=True)])
    fields = {
        name: torch.from_numpy(np.concatenate([d.fields[name][a] for d, a in zip(datums, active, strict=True)]))
        for name in datums[0].fields
    }
    return Batch(
        ids=torch.from_numpy(ids).to(device),
        where=torch.from_numpy(where).to(device),
        row=torch.from_numpy(row).to(device),
        targets=torch.from_numpy(targets).to(device),
        fields={name: value.to(device) for name, value in fields.items()},
        rows=len(datums),
    )


def micro_batches(datums: Sequence[Datum], max_tokens: int) -> Iterator[list[Datum]]:
    """Cut rows into batches of at most `max_tokens` padded tokens (one group at least), shortest
    first so that little is padding, and groups whole."""
    order = sorted(range(len(datums)), key=lambda i: (_group(datums, i), i))
    groups = [[datums[i] for i in members] for _, members in groupby(order, key=lambda i: _group(datums, i))]
    groups.sort(key=lambda rows: max(len(d) for d in rows))
    batch: list[Datum] = []
    for rows in groups:
        longest = max(len(d) for d in (*batch, *rows))
        if batch and longest * (len(batch) + len(rows)) > max_tokens:
            yield batch
            batch = []
        batch = batch + rows
    if batch:
        yield batch


def _group(datums: Sequence[Datum], i: int) -> tuple[bool, int]:
    group = datums[i].group
    return (True, i) if group is None else (False, group)


def predict(decoder: Decoder, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each active target and entropy there, fp32 [N]."""
    hidden = decoder(batch.ids).flatten(0, 1)[batch.where]
    return token_logprobs(hidden, decoder.lm_head.weight.to(hidden.dtype), batch.targets, temperature)
