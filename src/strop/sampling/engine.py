"""Continuous batching over key-value slots. Token ids in, token ids out: the engine knows
nothing of text, templates or tasks.

Active samples always fill slots 0..n-1, so a decode step reads the cache without a copy: when
one finishes, the last active slot moves into its place. A request's samples share one prefill:
the first runs the prompt, the others fork its slot.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from strop.errors import StropError
from strop.ledger import Ledger
from strop.model.decoder import CacheView, Decoder, KVCache
from strop.sampling.choose import choose, uniforms
from strop.types import Finish, Sampling

PREFILL_TOKENS = 8192  # padded prompt tokens run through the model at once


@dataclass(frozen=True)
class Job:
    """Prompt ids to continue `n` times. `sampling.stops` are the ids that end a completion."""

    id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    n: int = 1


@dataclass(frozen=True)
class Sample:
    """One finished continuation; a stop token, where one was drawn, is its last id."""

    id: str
    index: int
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    behavior_logprobs: tuple[float, ...] | None
    finish: Finish
    ledger: Ledger


@dataclass
class _Live:
    """A sample in a slot."""

    job: Job
    index: int
    limit: int
    forked: bool = False
    started: float = 0.0  # the engine's per-slot clock when the sample came in
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    behavior: list[float] = field(default_factory=list)


class Engine:
    """Samples from one decoder. `slots` caps the batch, `cache_bytes` its key-value memory."""

    def __init__(self, decoder: Decoder, slots: int = 256, cache_bytes: int = 1 << 30):
        self.decoder = decoder
        self.max_slots, self.cache_bytes = slots, cache_bytes
        self.autocast: torch.dtype | None = None
        self._cache = self._empty()
        self._live: list[_Live] = []
        self._clock = 0.0  # seconds spent, each step's shared out over the slots active in it

    def stream(self, jobs: Iterable[Job]) -> Iterator[Sample]:
        """Yield samples in completion order. Raises StropError for a prompt that leaves no room."""
        waiting: deque[_Live] = deque()
        context = self.decoder.shape.max_positions
        longest = 0
        for job in jobs:
            room = context - len(job.prompt_ids)
            if room < 1:
                length = len(job.prompt_ids)
                raise StropError(f"prompt {job.id} has {length} tokens; the model's context is {context}")
            if not job.prompt_ids:
                raise StropError(f"prompt {job.id} is empty")
            s = job.sampling
            if not (s.temperature >= 0 and 0 < s.top_p <= 1 and s.max_tokens >= 1):
                raise StropError(f"prompt {job.id}: sampling needs temperature >= 0, 0 < top_p <= 1, max_tokens >= 1")
            limit = min(room, job.sampling.max_tokens)
            longest = max(longest, len(job.prompt_ids) + limit)
            waiting.extend(_Live(job, i, limit) for i in range(job.n))
        if not waiting:
            return
        slots = self._reserve(longest, len(waiting))
        mine: list[_Live] = []
        self._live = mine  # the slots are this stream's until another one begins
        while waiting or mine:
            if self._live is not mine:
                raise StropError("another stream began on this engine before this one ended")
            with torch.inference_mode(), self._precision():
                self._admit(waiting, slots)
                finished = self._step()
            yield from finished

    def _empty(self) -> KVCache:
        return KVCache(self.decoder.shape, 0, 0, self.decoder.device, torch.float32)

    def _precision(self) -> torch.autocast:
        device = self.decoder.device.type
        return torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None)

    def _reserve(self, length: int, samples: int) -> int:
        """Make a cache for `samples` of up to `length` tokens; returns how many slots it has."""
        shape, device = self.decoder.shape, self.decoder.device
        dtype = self.autocast or self.decoder.lm_head.weight.dtype
        length = min(-(-length // 64) * 64, shape.max_positions)
        per_slot = 2 * shape.layers * shape.kv_heads * shape.head_dim * length * dtype.itemsize
        slots = max(1, min(self.max_slots, self.cache_bytes // per_slot, samples))
        keys = self._cache.keys
        # An exact fit, not a larger one: what was sampled before must not change how this is batched,
        # or a resumed run would differ in the last bit.
        if (keys.shape[1], keys.shape[3], keys.dtype) != (slots, length, dtype):
            self._cache = self._empty()  # free the old one before asking for the new one
            self._cache = KVCache(shape, slots, length, device, dtype)
        n = slots
        self._last = torch.zeros(n, dtype=torch.int64, device=device)
        self._position = torch.zeros(n, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(n, dtype=torch.int64, device=device)
        self._seed = torch.zeros(n, dtype=torch.int64, device=device)
        self._temperature = torch.zeros(n, device=device)
        self._top_p = torch.ones(n, device=device)
        return n

    def _admit(self, waiting: deque[_Live], slots: int) -> None:
        """Fill free slots. A prompt already in some slot is forked from it, else prefilled.

        All but the prompt's last token go into the cache: that one is fed to the first decode
        step, so forks and fresh prompts go on alike.
        """
        began = time.perf_counter()
        prefill: list[int] = []
        source = {id(live.job): slot for slot, live in enumerate(self._live)}
        forks: dict[int, list[int]] = {}
        first = len(self._live)
        while waiting and len(self._live) < slots:
            live, slot = waiting.popleft(), len(self._live)
            if (origin := source.setdefault(id(live.job), slot)) != slot:
                live.forked = True
                forks.setdefault(origin, []).append(slot)
            else:
                prefill.append(slot)
            self._live.append(live)
        if len(self._live) == first:
            return
        self._set(first)
        self._prefill(prefill)
        for origin, targets in forks.items():
            self._cache.copy(origin, targets, len(self._live[origin].job.prompt_ids) - 1)
        share = (time.perf_counter() - began) / (len(self._live) - first)
        for live in self._live[first:]:
            live.started = self._clock - share

    def _set(self, first: int) -> None:
        """Write the per-slot tensors of the samples from slot `first` on."""
        new, rows = self._live[first:], slice(first, len(self._live))
        device = self.decoder.device

        def put(buffer: Tensor, values: list) -> None:
            buffer[rows] = torch.tensor(values, dtype=buffer.dtype, device=device)

        put(self._last, [x.job.prompt_ids[-1] for x in new])
        put(self._position, [len(x.job.prompt_ids) - 1 for x in new])
        put(self._drawn, [0] * len(new))
        put(self._seed, [x.job.sampling.seed + x.index for x in new])
        put(self._temperature, [x.job.sampling.temperature for x in new])
        put(self._top_p, [x.job.sampling.top_p for x in new])

    def _prefill(self, slots: list[int]) -> None:
        """Run all but the last prompt token of these slots, like lengths together."""
        device = self.decoder.device
        pending = sorted(slots, key=lambda s: len(self._live[s].job.prompt_ids))
        while pending:
            batch, width = [pending[0]], len(self._live[pending[0]].job.prompt_ids) - 1
            for slot in pending[1:]:
                width_if = len(self._live[slot].job.prompt_ids) - 1
                if width_if * (len(batch) + 1) > PREFILL_TOKENS:
                    break
                batch.append(slot)
                width = width_if
            pending = pending[len(batch) :]
            if width == 0:
                continue
            rows = [list(self._live[s].job.prompt_ids[:-1]) for s in batch]
            ids = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=device)
            positions = torch.arange(width, device=device).expand(len(batch), -1)
            where = torch.tensor(batch, device=device)
            self.decoder(ids, CacheView.at(self._cache, where, positions, width))

    def _step(self) -> list[Sample]:
        """Draw one token for every active sample; return those that finished."""
        began = time.perf_counter()
        n = len(self._live)
        position = self._position[:n, None]
        length = max(len(x.job.prompt_ids) + len(x.ids) for x in self._live)
        hidden = self.decoder(self._last[:n, None], CacheView.at(self._cache, n, position, length))
        logits = self.decoder.lm_head(hidden[:, 0]).float()
        filtered = any(x.job.sampling.top_p < 1 for x in self._live)
        top_p = self._top_p[:n] if filtered else None
        uniform = uniforms(self._seed[:n], self._drawn[:n])
        tokens, logprobs, behavior = choose(logits, self._temperature[:n], top_p, uniform)
        self._last[:n] = tokens
        self._position[:n] += 1
        self._drawn[:n] += 1
        drawn = [tokens.tolist(), logprobs.tolist(), (logprobs if behavior is None else behavior).tolist()]
        self._clock += (time.perf_counter() - began) / n
        done = []
        for slot, (live, token, logprob, behaved) in enumerate(zip(self._live, *drawn, strict=True)):
            live.ids.append(token)
            live.logprobs.append(logprob)
            live.behavior.append(behaved)
            if token in live.job.sampling.stops or len(live.ids) == live.limit:
                done.append(slot)
        return [self._retire(slot) for slot in reversed(done)][::-1]

    def _retire(self, slot: int) -> Sample:
        """Take a finished sample out; the last active slot moves into its place."""
        live, last = self._live[slot], len(self._live) - 1
        if slot != last:
            mover = self._live[last]
            self._cache.copy(last, [slot], len(mover.job.prompt_ids) + len(mover.ids) - 1)
            for buffer in (self._last, self._position, self._drawn, self._seed, self._temperature, self._top_p):
                buffer[slot] = buffer[last]
            self._live[slot] = mover
        self._live.pop()
        stopped = live.ids[-1] in live.job.sampling.stops
        filtered = live.job.sampling.top_p < 1 and live.job.sampling.temperature > 0
        return Sample(
            id=live.job.id,
            index=live.index,
            completion_ids=tuple(live.ids),
            logprobs=tuple(live.logprobs),
            behavior_logprobs=tuple(live.behavior) if filtered else None,
            finish="stop" if stopped else "length",
            ledger=self._cost(live),
        )

    def _cost(self, live: _Live) -> Ledger:
        prompt, generated = len(live.job.prompt_ids), len(live.ids)
        shared = prompt - 1 if live.forked else 0
        flops = self.decoder.shape.forward_flops(generated, prompt + generated / 2)
        if not live.forked:
            flops += self.decoder.shape.forward_flops(prompt - 1, prompt / 2)
        return Ledger(
            prompt_tokens=prompt - shared,
            cached_tokens=shared,
            generated_tokens=generated,
            flops=flops,
            seconds=self._clock - live.started,
            calls=1,
        )
