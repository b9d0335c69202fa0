"""The nouns. Frozen, plain Python and numpy: this module knows nothing of torch, models or files.

Axis legend used in the package: B rows of a batch, T tokens, N selected tokens, V vocabulary,
D hidden size, H heads, L layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal

import numpy as np

from strop.ledger import Ledger

Finish = Literal["stop", "length", "budget"]


class Author(IntEnum):
    """Who wrote a token. Only POLICY tokens are learnt unless a config says otherwise."""

    USER = 0
    POLICY = 1
    TOOL = 2
    KNOWLEDGE = 3


@dataclass(frozen=True)
class Message:
    """One chat message, as in the OpenAI and Hugging Face `messages` convention."""

    role: str
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            out["tool_calls"] = [dict(call) for call in self.tool_calls]
        return out


@dataclass(frozen=True)
class Prompt:
    """A question put to a policy, with what its task needs to judge the answer.

    `answer` is the gold in the task's own form; `extras` holds what else the verifier needs
    (constraints, difficulty tier). `id` is a hash of the content alone, so the same question
    keeps its id whatever file or row it came from.
    """

    messages: tuple[Message, ...]
    task: str = ""
    row: int = 0
    answer: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def user(cls, text: str, **fields: Any) -> Prompt:
        """A prompt of one user message."""
        return cls(messages=(Message("user", text),), **fields)

    @cached_property
    def id(self) -> str:
        content = json.dumps([m.as_dict() for m in self.messages], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature=0` is greedy; `top_p=1` leaves the model unfiltered."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 128
    stops: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.max_tokens >= 1):
            raise ValueError(f"sampling needs temperature >= 0, 0 < top_p <= 1, max_tokens >= 1: {self}")


@dataclass(frozen=True)
class Turn:
    """One exchange: the ids that were appended, and the ids the policy then wrote.

    `logprobs` are the model's own log-probabilities at the sampling temperature (at
    temperature 1 for greedy); `behavior_logprobs` are those of the filtered distribution the
    token was drawn from, or None where no filter made them differ. `version` counts the weight
    updates of the policy that wrote the completion.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    behavior_logprobs: tuple[float, ...] | None = None
    version: int = 0


@dataclass(frozen=True)
class Rollout:
    """What was sampled, id for id. Its tokens are never made again from text.

    `text` is the completion decoded for judges and people; `template_hash` says which chat
    template made the prompt's ids.
    """

    prompt: Prompt
    turns: tuple[Turn, ...]
    sampling: Sampling
    finish: Finish
    text: str
    template_hash: str = ""
    ledger: Ledger = Ledger()
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> list[int]:
        """Every token of the conversation, in order."""
        return [i for turn in self.turns for i in (*turn.prompt_ids, *turn.completion_ids)]

    @property
    def authors(self) -> list[Author]:
        """Who wrote each token of `ids`."""
        out: list[Author] = []
        for turn in self.turns:
            out += [Author.USER] * len(turn.prompt_ids)
            out += [Author.POLICY] * len(turn.completion_ids)
        return out

    @property
    def completion_ids(self) -> list[int]:
        return [i for turn in self.turns for i in turn.completion_ids]

    @property
    def logprobs(self) -> list[float]:
        """Log-probabilities of the policy's own tokens, in order."""
        return [x for turn in self.turns for x in turn.logprobs]


@dataclass(frozen=True)
class Completion:
    """A text-only answer from an endpoint that gives no token ids.

    It can be judged, stored and made into SFT rows; having no ids it can't enter a policy
    gradient, and the types keep it out.
    """

    prompt: Prompt
    text: str
    finish: Finish = "stop"
    ledger: Ledger = Ledger()


@dataclass(frozen=True)
class Verdict:
    """Correctness in [0, 1], or `invalid` with the reason why no judgement could be made.

    A crash, a time-out or an unreadable gold is invalid, never 0. `parts` names components,
    among them `strict` and `flexible` where a task extracts an answer in both ways.
    """

    correctness: float | None
    invalid: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.correctness is None) == (self.invalid is None):
            raise ValueError("a verdict has a correctness or a reason to be invalid, not both")
        if self.correctness is not None and not 0.0 <= self.correctness <= 1.0:
            raise ValueError(f"correctness {self.correctness} is outside [0, 1]")

    @classmethod
    def unjudged(cls, reason: str) -> Verdict:
        """No judgement could be made, for this reason."""
        return cls(correctness=None, invalid=reason)

    def part(self, name: str) -> float | None:
        """A named component; the correctness itself where the task has no such part."""
        return self.parts.get(name, self.correctness)


@dataclass(frozen=True)
class Judged:
    """A rollout with its verdict."""

    rollout: Rollout
    verdict: Verdict

    def score(self, extraction: str = "strict") -> float | None:
        """The verdict by one extraction, or the task's own correctness; None where invalid."""
        return None if self.verdict.invalid else self.verdict.part(extraction)


@dataclass(frozen=True)
class Reward:
    """An unbounded value for a rollout, optionally per token, or invalid with a reason."""

    value: float | None
    invalid: str | None = None
    per_token: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Datum:
    """What the training loop eats: one row of tokens and what an objective needs per token.

    ids, targets: int64 [T], targets[t] being the token after ids[t]. fields: float32 [T] each,
    aligned with targets; `weight` is there always, and a target of weight 0 is not learnt.
    Rows of one `group` are never split across micro-batches.
    """

    ids: np.ndarray
    targets: np.ndarray
    fields: Mapping[str, np.ndarray]
    group: int | None = None

    @classmethod
    def from_tokens(
        cls, tokens: Sequence[int], weight: Sequence[float], group: int | None = None, **fields: Any
    ) -> Datum:
        """Shift a row of T+1 tokens into T predictions.

        `weight` and every further field say, for each of the T+1 tokens, what predicting that
        token carries; the first token is never predicted. Scalars are spread over the row.
        """
        shifted = {}
        for name, value in {"weight": weight, **fields}.items():
            spread = np.broadcast_to(np.asarray(value, np.float32), (len(tokens),))
            shifted[name] = spread[1:]
        array = np.asarray(tokens, np.int64)
        return cls(ids=array[:-1], targets=array[1:], fields=shifted, group=group)

    def __len__(self) -> int:
        return len(self.ids)


def content_hash(value: Any) -> str:
    """A short, stable hash of plain JSON-able data (dataclasses are written as dicts)."""
    text = json.dumps(value, sort_keys=True, default=lambda o: asdict(o))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
