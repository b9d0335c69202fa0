"""The nouns: frozen, plain Python and numpy. Axes are B rows of a batch, T tokens of a row, N selected tokens,
V vocabulary, D hidden size, H heads, L layers; G groups (prompts), S samples of a group."""

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
        calls = {"tool_calls": [dict(call) for call in self.tool_calls]} if self.tool_calls else {}
        return {"role": self.role, "content": self.content, **calls}


@dataclass(frozen=True)
class Prompt:
    """A question with its gold `answer` and what else its verifier needs; `id` hashes the messages, not file or row."""

    messages: tuple[Message, ...]
    task: str = ""
    row: int = 0
    answer: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def user(cls, text: str, **fields: Any) -> Prompt:
        return cls(messages=(Message("user", text),), **fields)

    @cached_property
    def id(self) -> str:
        return content_hash([m.as_dict() for m in self.messages])


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature=0` is greedy; `top_p=1` leaves the model unfiltered."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 128
    stops: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Turn:
    """One exchange: ids appended, then ids written by the policy at weight `version`. `logprobs` are the model's own at
    the sampling temperature (1 for greedy), `behavior_logprobs` those of the filtered distribution where it differs."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    behavior_logprobs: tuple[float, ...] | None = None
    version: int = 0


@dataclass(frozen=True)
class Rollout:
    """What was sampled, id for id: `text`, decoded for judges and people, is never made into tokens again."""

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
        return [i for turn in self.turns for i in (*turn.prompt_ids, *turn.completion_ids)]

    @property
    def authors(self) -> list[Author]:
        lengths = [(len(turn.prompt_ids), len(turn.completion_ids)) for turn in self.turns]
        return [a for p, c in lengths for a in (*[Author.USER] * p, *[Author.POLICY] * c)]

    @property
    def completion_ids(self) -> list[int]:
        return [i for turn in self.turns for i in turn.completion_ids]

    @property
    def logprobs(self) -> list[float]:
        return [x for turn in self.turns for x in turn.logprobs]


@dataclass(frozen=True)
class Completion:
    """A text-only answer from an endpoint without token ids: by its type it can't enter a policy gradient."""

    prompt: Prompt
    text: str
    finish: Finish = "stop"
    ledger: Ledger = Ledger()


@dataclass(frozen=True)
class Verdict:
    """Correctness in [0, 1], or `invalid` with the reason why there is no judgement: a crash, a time-out or an
    unreadable gold is never 0. `parts` names components, `strict` and `flexible` extraction among them."""

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
        return cls(correctness=None, invalid=reason)


@dataclass(frozen=True)
class Judged:
    """A rollout with its verdict."""

    rollout: Rollout
    verdict: Verdict

    def score(self, part: str = "correctness") -> float | None:
        """A part of the verdict, its correctness where the task has no such part; None where invalid."""
        return None if self.verdict.invalid else self.verdict.parts.get(part, self.verdict.correctness)


@dataclass(frozen=True)
class Reward:
    """An unbounded value for a rollout, optionally per token, or invalid with a reason."""

    value: float | None
    invalid: str | None = None
    per_token: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Datum:
    """A training row. ids, targets: int64 [T], targets[t] following ids[t]. fields: float32 [T] per target, always with
    a `weight`; a target of weight 0 is not learnt. Rows of one `group` stay in one micro-batch."""

    ids: np.ndarray
    targets: np.ndarray
    fields: Mapping[str, np.ndarray]
    group: int | None = None

    @classmethod
    def from_tokens(
        cls, tokens: Sequence[int], weight: Sequence[float], group: int | None = None, **fields: Any
    ) -> Datum:
        """Shift a row of T+1 tokens, with a `weight` and fields for each (scalars are spread), into T predictions."""
        given = {"weight": weight, **fields}
        shifted = {n: np.broadcast_to(np.asarray(v, np.float32), len(tokens))[1:] for n, v in given.items()}
        array = np.asarray(tokens, np.int64)
        return cls(array[:-1], array[1:], shifted, group)

    def __len__(self) -> int:
        return len(self.ids)


def content_hash(value: Any) -> str:
    """A short, stable hash of plain JSON-able data (dataclasses are written as dicts)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=asdict).encode()).hexdigest()[:16]
