"""Continuous batching over key-value slots, token ids in and out. Active samples fill slots 0..n-1: no copy to read."""

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import torch

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
    """A sample that waits for a slot or grows in one."""

    job: Job
    index: int
    limit: int  # tokens it may draw
    forked: bool = False
    seconds: float = 0.0  # its share of the prefill and of each step
    drawn: list[tuple[int, float, float]] = field(default_factory=list)  # ids, model's and behaviour log-probs

    @property
    def last(self) -> int:
        return self.drawn[-1][0] if self.drawn else self.job.prompt_ids[-1]

    @property
    def length(self) -> int:
        """Tokens so far, prompt included. All but the last are in the cache."""
        return len(self.job.prompt_ids) + len(self.drawn)

    @property
    def stopped(self) -> bool:
        return self.last in self.job.sampling.stops


class Engine:
    """Samples from one decoder. `slots` caps the batch, `cache_bytes` its key-value memory."""

    def __init__(self, decoder: Decoder, slots: int = 256, cache_bytes: int = 1 << 30):
        self.decoder, self.slots, self.cache_bytes = decoder, slots, cache_bytes

    def stream(self, jobs: Iterable[Job]) -> Iterator[Sample]:
        """Samples in completion order. Raises StropError for a prompt that leaves no room or impossible sampling."""
        context, waiting = self.decoder.shape.max_positions, deque[_Live]()
        for job in jobs:
            length, s = len(job.prompt_ids), job.sampling
            if not 0 < length < context:
                raise StropError(f"prompt {job.id} has {length} tokens; the model's context is {context}")
            if not (s.temperature >= 0 and 0 < s.top_p <= 1 and s.max_tokens >= 1):
                raise StropError(f"prompt {job.id}: sampling needs temperature >= 0, 0 < top_p <= 1, max_tokens >= 1")
            waiting.extend(_Live(job, i, min(context - length, s.max_tokens)) for i in range(job.n))
        if not waiting:
            return
        slots = _Slots(self.decoder, self._cache(waiting))
        while waiting or slots.live:
            with torch.inference_mode(), self.decoder.precision():
                slots.admit(waiting)
                finished = slots.step()
            yield from finished

    def _cache(self, samples: Collection[_Live]) -> KVCache:
        """A cache that fits these samples, whatever came before: else a resumed run would differ in the last bit."""
        shape, dtype = self.decoder.shape, self.decoder.autocast or self.decoder.lm_head.weight.dtype
        length = min(-(-max(x.length + x.limit for x in samples) // 64) * 64, shape.max_positions)
        per_slot = 2 * shape.layers * shape.kv_heads * shape.head_dim * length * dtype.itemsize
        slots = max(1, min(self.slots, self.cache_bytes // per_slot, len(samples)))
        return KVCache(shape, slots, length, self.decoder.device, dtype)


class _Slots:
    """One stream's samples in progress, by slot, and the cache that holds their tokens."""

    def __init__(self, decoder: Decoder, cache: KVCache):
        self.decoder, self.cache, self.live = decoder, cache, list[_Live]()

    def admit(self, waiting: deque[_Live]) -> None:
        """Fill free slots: fork a prompt that some slot has, else prefill all but its last token, the first step's."""
        began, first = time.perf_counter(), len(self.live)
        new = [waiting.popleft() for _ in range(min(len(waiting), self.cache.slots - first))]
        if not new:
            return
        self.live += new
        origins, forks = dict[int, int](), dict[int, list[int]]()
        for slot, live in enumerate(self.live):
            origin = origins.setdefault(id(live.job), slot)
            if slot >= first and origin != slot:
                live.forked = True
                forks.setdefault(origin, []).append(slot)
        self._prefill([slot for slot, live in enumerate(new, first) if not live.forked])
        for origin, targets in forks.items():
            self.cache.copy(origin, targets, len(self.live[origin].job.prompt_ids) - 1)
        share = (time.perf_counter() - began) / len(new)
        for live in new:
            live.seconds = share

    def _prefill(self, slots: list[int]) -> None:
        """Run all but the last prompt token of these slots, like lengths together."""
        device, prompts = self.decoder.device, {slot: self.live[slot].job.prompt_ids[:-1] for slot in slots}
        slots = sorted(slots, key=lambda slot: len(prompts[slot]))
        while slots:
            fits = sum(n * len(prompts[slot]) <= PREFILL_TOKENS for n, slot in enumerate(slots, 1))
            batch, slots = slots[: max(1, fits)], slots[max(1, fits) :]
            if (width := len(prompts[batch[-1]])) > 0:
                ids = torch.tensor([[*prompts[s], *[0] * (width - len(prompts[s]))] for s in batch], device=device)
                positions = torch.arange(width, device=device).expand(len(batch), -1)
                self.decoder(ids, CacheView.at(self.cache, torch.tensor(batch, device=device), positions, width))

    def step(self) -> list[Sample]:
        """Draw one token for every active sample; return those that finished."""
        began, live, device = time.perf_counter(), self.live, self.decoder.device
        state = [(x.last, x.length - 1, x.job.sampling.seed + x.index, len(x.drawn)) for x in live]
        last, position, seed, count = torch.tensor(state, device=device).T
        settings = [(x.job.sampling.temperature, x.job.sampling.top_p) for x in live]
        temperature, top_p = torch.tensor(settings, dtype=torch.float32, device=device).T
        view = CacheView.at(self.cache, len(live), position[:, None], max(x.length for x in live))
        logits = self.decoder.lm_head(self.decoder(last[:, None], view)[:, 0]).float()
        filters = top_p if any(p < 1 for _, p in settings) else None
        tokens, logprobs, behavior = choose(logits, temperature, filters, uniforms(seed, count))
        columns = [c.tolist() for c in (tokens, logprobs, logprobs if behavior is None else behavior)]
        share = (time.perf_counter() - began) / len(live)
        for x, token, logprob, behaved in zip(live, *columns, strict=True):
            x.drawn.append((token, logprob, behaved))
            x.seconds += share
        done = [slot for slot, x in enumerate(live) if x.stopped or len(x.drawn) == x.limit]
        return [self._retire(slot) for slot in reversed(done)][::-1]

    def _retire(self, slot: int) -> Sample:
        """Take a finished sample out; the last active one moves into its slot."""
        done, mover = self.live[slot], self.live.pop()
        if mover is not done:
            self.cache.copy(len(self.live), [slot], mover.length - 1)
            self.live[slot] = mover
        job, prompt, generated = done.job, len(done.job.prompt_ids), len(done.drawn)
        cached = prompt - 1 if done.forked else 0
        flops = self.decoder.shape.forward_flops(generated, prompt + generated / 2)
        flops += self.decoder.shape.forward_flops(prompt - 1 - cached, prompt / 2)
        ledger = Ledger(prompt - cached, cached, generated, flops=flops, seconds=done.seconds, calls=1)
        ids, logprobs, behavior = zip(*done.drawn, strict=True)
        filtered = job.sampling.top_p < 1 and job.sampling.temperature > 0
        finish: Finish = "stop" if done.stopped else "length"
        return Sample(job.id, done.index, ids, logprobs, behavior if filtered else None, finish, ledger)
