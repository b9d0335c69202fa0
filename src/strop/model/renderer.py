"""Messages to tokens with an author per token, and back.

The chat template decides the text. A row is tokenised in pieces cut where the policy starts
and stops writing, so that the ids of a sampled prompt are always a prefix of the ids of the
trained row, whatever the tokenizer would merge across the border.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

from strop.errors import StropError
from strop.types import Author, Message

# What a checkpoint without a chat template is given: plain text, as a base model has read it.
PLAIN_TEMPLATE = (
    "{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}{{ 'Question: ' + m.content + '\\n' }}"
    "{%- elif m.role == 'assistant' -%}{{ 'Answer:' }}"
    "{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}{{ '\\n' }}"
    "{%- elif m.role in ('system', 'knowledge') -%}{{ m.content + '\\n' }}"
    "{%- else -%}{{ raise_exception('the plain template has no role ' + m.role) }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Answer:' }}{%- endif -%}"
)


RAW_TEMPLATE = "{%- for m in messages -%}{{ m.content }}{%- endfor -%}"


class Renderer:
    """A tokenizer with its chat template. Knows nothing of models or sampling."""

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int] = ()):
        self.tokenizer = tokenizer
        self.without_template = not tokenizer.chat_template
        if self.without_template:
            tokenizer.chat_template = PLAIN_TEMPLATE
        if tokenizer.eos_token_id is None:
            raise StropError(f"{tokenizer.name_or_path}: the tokenizer has no eos_token, so nothing can stop")
        self._declared_stops = tuple(stop_ids)

    @classmethod
    def load(cls, directory: Path) -> Renderer:
        """Read a model directory's tokenizer, template and stop ids (generation_config.json)."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError …
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise StropError(f"{directory}: no usable tokenizer: {reason}") from error
        stops: list[int] = []
        for name in ("generation_config.json", "config.json"):
            if (path := directory / name).exists():
                try:
                    eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
                except (ValueError, AttributeError) as error:
                    raise StropError(f"{path}: not a JSON object") from error
                stops += eos if isinstance(eos, list) else [eos] if isinstance(eos, int) else []
        return cls(tokenizer, stops)

    def raw(self) -> Renderer:
        """The same tokenizer with no template at all: messages' contents as they stand."""
        tokenizer = deepcopy(self.tokenizer)
        tokenizer.chat_template = RAW_TEMPLATE
        return Renderer(tokenizer, self.stops)

    @cached_property
    def template_hash(self) -> str:
        """Names the template, so that stages can check that they speak the same one."""
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16]

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Ids that end a completion: eos, the declared ones, and what the template ends a turn with."""
        stops = {self.tokenizer.eos_token_id, *self._declared_stops}
        question, answer = Message("user", "x"), "probe"
        turn = self._after(self.text([question], True), self.text([question, Message("assistant", answer)]))
        # all_special_ids lists only registered ones: Llama 3's <|eot_id|>, say, is special but not there.
        added = self.tokenizer.added_tokens_decoder
        special = {*self.tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        tail = self.encode(turn.rpartition(answer)[2].lstrip())
        if tail and tail[0] in special:
            stops.add(tail[0])
        return tuple(sorted(stops))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, special tokens' names understood, nothing added."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token as readable text, for previews."""
        return [self.tokenizer.decode([i]) for i in ids]

    def text(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The template's text, up to where the assistant starts to write if `prompt`."""
        try:
            rendered = self.tokenizer.apply_chat_template(
                [m.as_dict() for m in messages], tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # jinja raises whatever a template raises
            roles = ", ".join(m.role for m in messages)
            reason = " ".join(str(error).split())
            raise StropError(f"the chat template refuses these roles ({roles}): {reason}") from error
        for message in messages:
            if message.content.strip() and message.content.strip() not in rendered:
                raise StropError(f"the chat template drops the content of a {message.role!r} message")
        return rendered

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant starts to write."""
        return self.render([*messages, Message("assistant", "")], prompt_only=True)[0]

    def render(self, messages: Sequence[Message], prompt_only: bool = False) -> tuple[list[int], list[Author]]:
        """Ids of a conversation and who wrote each. The policy wrote each assistant turn from the
        end of its generation prompt through its stop token; what the template adds after that
        (a newline, say) is the user's.

        Raises StropError where rendering turn by turn and at once disagree (a template that
        rewrites earlier turns), because no prefix could then be trusted.
        """
        ids: list[int] = []
        authors: list[Author] = []

        def add(text: str, author: Author) -> None:
            new = self.encode(text)
            if author is Author.POLICY:
                end = next((i for i, t in enumerate(new) if t in self.stops), len(new) - 1) + 1
                authors.extend([Author.POLICY] * end + [Author.USER] * (len(new) - end))
            else:
                authors.extend([author] * len(new))
            ids.extend(new)

        done = ""
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self.text(messages[:i], prompt=True)
            add(self._after(done, before), Author.USER)
            if prompt_only and i == len(messages) - 1:
                return ids, authors
            done = self.text(messages[: i + 1])
            add(self._after(before, done), Author.POLICY)
        if messages[-1].role != "assistant":
            add(self._after(done, self.text(messages)), Author.USER)
        return ids, authors

    def extend(self, messages: Sequence[Message], new: Sequence[Message]) -> list[int]:
        """Bridge ids from just after the stop token of `messages`' last turn to the next
        generation prompt, `new` messages in between: appended, never re-tokenised."""
        done = self.text(messages)
        ended = self.encode(done)
        last = max((i for i, token in enumerate(ended) if token in self.stops), default=None)
        if last is None:
            raise StropError("the chat template ends no turn with a stop token, so turns can't be appended")
        return ended[last + 1 :] + self.encode(self._after(done, self.text([*messages, *new], prompt=True)))

    @staticmethod
    def _after(prefix: str, text: str) -> str:
        if not text.startswith(prefix):
            raise StropError("the chat template rewrites earlier turns, so tokens can't be kept as sampled")
        return text[len(prefix) :]
