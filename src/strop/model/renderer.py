"""Messages to tokens with an author per token, and back. A sampled prompt's ids are a prefix of the trained row's."""

import hashlib
from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from strop.errors import StropError
from strop.model.checkpoint import read_json
from strop.types import Author, Message

# What a checkpoint without a chat template is given: plain text, as a base model has read it.
PLAIN_TEMPLATE = (
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{{ 'Question: ' + m.content + '\\n' }}"
    "{%- elif m.role == 'assistant' -%}{{ 'Answer:' }}"
    "{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}{{ '\\n' }}"
    "{%- elif m.role in ('system', 'knowledge') -%}{{ m.content + '\\n' }}"
    "{%- else -%}{{ raise_exception('the plain template has no role ' + m.role) }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Answer:' }}{%- endif -%}"
)
RAW_TEMPLATE = "{%- for m in messages -%}{{ m.content }}{%- endfor -%}"


class Renderer:
    """A tokenizer with its chat template. Knows nothing of models or sampling."""

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int] = ()):
        if tokenizer.eos_token_id is None:
            raise StropError(f"{tokenizer.name_or_path}: the tokenizer has no eos_token, so nothing can stop")
        self.tokenizer, self._declared_stops, self.without_template = tokenizer, stop_ids, not tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template or PLAIN_TEMPLATE

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read a model directory's tokenizer, template and stop ids (generation_config.json, config.json)."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError …
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise StropError(f"{directory}: no usable tokenizer: {reason}") from error
        stops: list[int] = []
        for path in (directory / "generation_config.json", directory / "config.json"):
            eos = read_json(path).get("eos_token_id") if path.exists() else None
            stops += eos if isinstance(eos, list) else [] if eos is None else [eos]
        return cls(tokenizer, stops)

    def raw(self) -> Self:
        """The same tokenizer with no template at all: messages' contents as they stand."""
        tokenizer = deepcopy(self.tokenizer)
        tokenizer.chat_template = RAW_TEMPLATE
        return type(self)(tokenizer, self.stops)

    @cached_property
    def template_hash(self) -> str:
        """Names the template, so that stages can check that they speak the same one."""
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16]

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Ids that end a completion: eos, the declared ones, and what the template ends a turn with."""
        talk = [Message("user", "x"), Message("assistant", "probe")]
        said = self._after(self.text(talk[:1], prompt=True), self.text(talk))
        added = self.tokenizer.added_tokens_decoder  # all_special_ids may lack some: Llama 3's <|eot_id|>, say
        special = [i for i in self.encode(said.rpartition("probe")[2].lstrip())[:1] if i in added and added[i].special]
        return tuple(sorted({self.tokenizer.eos_token_id, *self._declared_stops, *special}))

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
        talk = [m.as_dict() for m in messages]
        try:
            rendered = self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # jinja raises whatever a template raises
            roles, reason = ", ".join(m.role for m in messages), " ".join(str(error).split())
            raise StropError(f"the chat template refuses these roles ({roles}): {reason}") from error
        if dropped := [m.role for m in messages if m.content.strip() not in rendered]:
            raise StropError(f"the chat template drops the content of a {dropped[0]!r} message")
        return rendered

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant starts to write."""
        return self.render(messages, prompt=True)[0]

    def render(self, messages: Sequence[Message], prompt: bool = False) -> tuple[list[int], list[Author]]:
        """Ids of a conversation, up to where the assistant starts to write if `prompt`, and who wrote each: the policy
        from a generation prompt's end through a stop token. Raises StropError for a template that rewrites turns."""
        ids, authors, done = list[int](), list[Author](), ""
        for i, message in enumerate(messages):
            if message.role == "assistant":
                before, after = self.text(messages[:i], prompt=True), self.text(messages[: i + 1])
                asked, said = self.encode(self._after(done, before)), self.encode(self._after(before, after))
                end = next((n for n, token in enumerate(said, 1) if token in self.stops), len(said))
                ids += asked + said
                authors += [Author.USER] * len(asked) + [Author.POLICY] * end + [Author.USER] * (len(said) - end)
                done = after
        rest = self.encode(self._after(done, self.text(messages, prompt)))
        return ids + rest, authors + [Author.USER] * len(rest)

    def extend(self, messages: Sequence[Message], new: Sequence[Message]) -> list[int]:
        """Ids from just after the stop token of `messages`' last turn to the generation prompt that follows `new`."""
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
