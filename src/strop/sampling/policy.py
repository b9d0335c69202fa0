"""A policy: one set of weights that samples and scores, with the renderer that speaks to it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from strop.errors import StropError
from strop.model.checkpoint import assign, load_decoder, locate, read_config, save_decoder
from strop.model.decoder import Decoder
from strop.model.renderer import Renderer
from strop.model.scoring import collate, micro_batches, predict
from strop.protocols import Request
from strop.sampling.engine import Engine, Job
from strop.types import Author, Datum, Prompt, Rollout, Sampling, Turn

SCORE_TOKENS = 16384  # padded tokens scored at once


class Policy:
    """Sampler and scorer on the same decoder, so that what was sampled can be scored exactly."""

    def __init__(self, decoder: Decoder, renderer: Renderer, config: Mapping[str, Any], name: str = ""):
        self.decoder, self.renderer, self.config, self.name = decoder, renderer, dict(config), name
        self.autocast, self.precision = decoder.autocast, decoder.precision
        self.engine, self.version = Engine(decoder), 0

    @classmethod
    def load(cls, name: str | Path, device: str = "cpu", dtype: str = "float32") -> Self:
        """Load `strop-nano`, a model directory or a hub id; `dtype` bfloat16 computes under autocast."""
        directory = locate(name)
        return cls(load_decoder(directory, device, dtype), Renderer.load(directory), read_config(directory), str(name))

    def copy(self) -> Self:
        """A policy with the same weights, held apart: training this one leaves the copy as it is."""
        return type(self)(deepcopy(self.decoder), self.renderer, self.config, self.name)

    def save(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a Hugging Face model directory: weights, config, tokenizer, chat template, generation_config.json."""
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
        asked: dict[str, tuple[Request, Job]] = {}
        for request in requests:
            if request.id in asked:
                raise StropError(f"request id {request.id} is used twice")
            ids = tuple(self.renderer.prompt(request.prompt.messages))
            stops = (*request.sampling.stops, *self.renderer.stops)
            asked[request.id] = request, Job(request.id, ids, replace(request.sampling, stops=stops), request.n)
        for s in self.engine.stream([job for _, job in asked.values()]):
            request, job = asked[s.id]
            turn = Turn(job.prompt_ids, s.completion_ids, s.logprobs, s.behavior_logprobs, self.version)
            drawn = replace(request.sampling, seed=request.sampling.seed + s.index)
            text, spoken = self.renderer.decode(s.completion_ids).strip(), self.renderer.template_hash
            yield s.id, Rollout(request.prompt, (turn,), drawn, s.finish, text, spoken, s.ledger, {"sample": s.index})

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, n: int = 1) -> list[list[Rollout]]:
        """Rollouts per prompt, `n` each, in order. Prompt i draws with seed `sampling.seed + i·n`."""
        requests = [Request(str(i), p, replace(sampling, seed=sampling.seed + i * n), n) for i, p in enumerate(prompts)]
        out: list[list[Rollout]] = [[] for _ in prompts]
        for id, rollout in self.stream(requests):
            out[int(id)].append(rollout)
        return [sorted(rollouts, key=lambda r: r.extras["sample"]) for rollouts in out]

    @torch.no_grad()
    def score(self, rollouts: Sequence[Rollout], temperature: float | None = None) -> list[list[float]]:
        """Log-probability of each of the policy's own tokens, at the sampling temperature (1 for greedy) or given."""
        out: list[list[float]] = [[] for _ in rollouts]
        temperatures = [temperature or r.sampling.temperature or 1.0 for r in rollouts]
        for t in set(temperatures):
            datums = [rollout_datum(r, row=i) for i, r in enumerate(rollouts) if temperatures[i] == t]
            for micro in micro_batches(datums, SCORE_TOKENS):
                batch = collate(micro, self.decoder.device)
                with self.precision():
                    logprobs, _ = predict(self.decoder, batch, t)
                for row, value in zip(batch.fields["row"].tolist(), logprobs.tolist(), strict=True):
                    out[int(row)].append(value)
        return out


def rollout_datum(rollout: Rollout, group: int | None = None, **fields: Any) -> Datum:
    """A rollout as a training row: weight 1 on the policy's own tokens, 0 elsewhere."""
    return Datum.from_tokens(rollout.ids, [float(a is Author.POLICY) for a in rollout.authors], group, **fields)
