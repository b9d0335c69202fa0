"""The seams: what a sampler, a scorer and a task promise, whoever implements them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from strop.types import Prompt, Rollout, Sampling, Verdict


@dataclass(frozen=True)
class Request:
    """One prompt to sample `n` times. Sample i draws with seed `sampling.seed + i`."""

    id: str
    prompt: Prompt
    sampling: Sampling
    n: int = 1


@runtime_checkable
class Sampler(Protocol):
    """Prompts in, rollouts out."""

    def stream(self, requests: Iterable[Request]) -> Iterator[tuple[str, Rollout]]:
        """Yield (request id, rollout) in completion order, n of them per request."""

    def update_weights(self, tensors: Mapping[str, Any], version: int) -> None:
        """Take new weights; rollouts from now on carry `version`."""


@runtime_checkable
class Scorer(Protocol):
    """Rollouts in, log-probabilities out."""

    def score(self, rollouts: Sequence[Rollout]) -> list[list[float]]:
        """The log-probability of each of the policy's own tokens, per rollout."""


@runtime_checkable
class Task(Protocol):
    """Problems whose answers can be checked."""

    name: str

    def prompts(self, split: str) -> Sequence[Prompt]:
        """All prompts of `train`, `dev` or `test`; the same ones in the same order, always."""

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Judge an answer."""

    def gold(self, prompt: Prompt) -> str:
        """An answer that `verify` gives 1."""
