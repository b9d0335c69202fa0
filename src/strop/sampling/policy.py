"""A policy: one set of weights that samples and scores, with the renderer that speaks to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from strop.errors import StropError
from strop.model.checkpoint import assign, load_decoder, locate, read_config, save_decoder
from strop.model.decoder import Decoder
from strop.model.renderer import Renderer
from strop.model.scoring import collate, micro_batches, predict
from strop.protocols import Request
from strop.sampling.engine import Engine, Job, Sample
from strop.types import Author, Datum, Prompt, Rollout, Sampling, Turn


class Policy:
    """Sampler and scorer on the same decoder, so that what was sampled can be scored exactly."""

    def __init__(self, decoder: Decoder, renderer: Renderer, config: Mapping[str, Any], name: str = ""):
        self.decoder, self.renderer, self.config, self.name = decoder, renderer, dict(config), name
        self.engine = Engine(decoder)
        self.version = 0

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", dtype: str = "float32") -> Policy:
        """Load `strop-nano`, a model directory or a hub id. Weights are fp32; `dtype` bfloat16
        computes under autocast."""
        directory = locate(name)
        config = read_config(directory)
        decoder = load_decoder(directory, device)
        policy = cls(decoder, Renderer.load(directory), config, str(name))
        policy.engine.autocast = None if dtype == "float32" else getattr(torch, dtype)
        return policy

    def copy(self) -> Policy:
        """A policy with the same weights, held apart: training this one leaves the copy as it is."""
        other = Policy(deepcopy(self.decoder), self.renderer, self.config, self.name)
        other.engine.autocast = self.autocast
        return other

    @property
    def autocast(self) -> torch.dtype | None:
        return self.engine.autocast

    def precision(self) -> torch.autocast:
        """The autocast context that sampling, scoring and training share."""
        device = self.decoder.device.type
        return torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None)

    def save(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a Hugging Face model directory: weights, config, tokenizer, chat template and
        generation_config.json."""
        save_decoder(self.decoder, self.config, directory, dtype)
        self.renderer.tokenizer.save_pretrained(directory)
        stops = list(self.renderer.stops)
        generation = {"eos_token_id": stops if len(stops) > 1 else stops[0], "do_sample": True}
        (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")

    def update_weights(self, tensors: Mapping[str, Any], version: int) -> None:
        """Take new weights by Hugging Face name; rollouts from now on carry `version`."""
        assign(self.decoder, tensors, f"weights of version {version}")
        self.version = version

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[str, Rollout]]:
        """Yield (request id, rollout) in completion order, `n` of them per request."""
        asked: dict[str, Request] = {}
        jobs = []
        for request in requests:
            if request.id in asked:
                raise StropError(f"request id {request.id} is used twice")
            asked[request.id] = request
            ids = tuple(self.renderer.prompt(request.prompt.messages))
            jobs.append(Job(request.id, ids, self._with_stops(request.sampling), request.n))
        prompt_ids = {job.id: job.prompt_ids for job in jobs}
        for sample in self.engine.stream(jobs):
            yield sample.id, self._rollout(asked[sample.id], prompt_ids[sample.id], sample)

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1) -> list[list[Rollout]]:
        """Rollouts per prompt, `n` each, in order. Prompt i draws with seed `sampling.seed + i·n`."""
        requests = [
            Request(str(i), prompt, replace(sampling, seed=sampling.seed + i * n), n)
            for i, prompt in enumerate(prompts)
        ]
        out: list[list[Rollout]] = [[] for _ in prompts]
        for id, rollout in self.stream(requests):
            out[int(id)].append(rollout)
        return [sorted(rollouts, key=lambda r: r.extras["sample"]) for rollouts in out]

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], temperature: float | None = None) -> list[list[float]]:
        """Log-probability of each of the policy's own tokens, at the sampling temperature (at 1
        for greedy) unless one is given."""
        out: list[list[float]] = [[] for _ in rollouts]
        by_temperature: dict[float, list[int]] = {}
        for i, rollout in enumerate(rollouts):
            t = temperature or rollout.sampling.temperature or 1.0
            by_temperature.setdefault(t, []).append(i)
        for t, members in by_temperature.items():
            datums = [rollout_datum(rollouts[i], row=i) for i in members]
            for micro in micro_batches(datums, 16384):
                batch = collate(micro, self.decoder.device)
                with self.precision():
                    logprobs, _ = predict(self.decoder, batch, t)
                for row, value in zip(batch.fields["row"].tolist(), logprobs.tolist(), strict=True):
                    out[int(row)].append(value)
        return out

    def _with_stops(self, sampling: Sampling) -> Sampling:
        stops = tuple(sorted({*sampling.stops, *self.renderer.stops}))
        return replace(sampling, stops=stops)

    def _rollout(self, request: Request, prompt_ids: tuple[int, ...], sample: Sample) -> Rollout:
        turn = Turn(prompt_ids, sample.completion_ids, sample.logprobs, sample.behavior_logprobs, self.version)
        return Rollout(
            prompt=request.prompt,
            turns=(turn,),
            sampling=replace(request.sampling, seed=request.sampling.seed + sample.index),
            finish=sample.finish,
            text=self.renderer.decode(sample.completion_ids).strip(),
            template_hash=self.renderer.template_hash,
            ledger=sample.ledger,
            extras={"sample": sample.index},
        )


def rollout_datum(rollout: Rollout, group: int | None = None, **fields: Any) -> Datum:
    """A rollout as a training row: weight 1 on the policy's own tokens, 0 elsewhere."""
    weight = [1.0 if author is Author.POLICY else 0.0 for author in rollout.authors]
    return Datum.from_tokens(rollout.ids, weight, group, **fields)
