"""What the tests share: a tokenizer trained in-process and small random transformers checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from strop.sampling.policy import Policy

torch.set_num_threads(1)
settings.register_profile("strop", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("strop")

EOS, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEXT = """Question: What is 12 + 34? Answer: The answer is 46. A strop is the leather that gives a blade
its last edge. The user asks, the assistant answers, the system says how. Ada has 7 apples and 21 books."""
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {"plain": None, "chatml": CHATML, "chatml-marked": CHATML_MARKED}


@pytest.fixture(scope="session")
def _bpe() -> Tokenizer:
    """Byte-level BPE, digits split, of some 350 tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=[EOS, START, END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([TEXT], trainer)
    return bpe


@pytest.fixture(scope="session")
def make_tokenizer(_bpe: Tokenizer) -> Callable[..., PreTrainedTokenizerFast]:
    """A fresh tokenizer (a Renderer may write its template) with a template by name or as text."""

    def make(template: str = "plain") -> PreTrainedTokenizerFast:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=_bpe, eos_token=EOS, additional_special_tokens=[START, END]
        )
        tokenizer.chat_template = TEMPLATES.get(template, template)
        return tokenizer

    return make


@pytest.fixture
def tiny_tokenizer(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def random_checkpoint(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Factory of a random transformers checkpoint's directory, made once per arguments: don't write in it.

    Weights are wide (std 0.2, biases and norms included), so that logits are far from flat and a
    parameter read wrongly shows.
    """
    made: dict[str, Path] = {}

    def make(family: str = "llama", template: str = "plain", **overrides: Any) -> Path:
        key = json.dumps([family, template, overrides], sort_keys=True)
        if key in made:
            return made[key]
        tokenizer = make_tokenizer(template)
        sizes = {
            "vocab_size": len(tokenizer),
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            "sliding_window": None,
            "bos_token_id": None,
            "pad_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        }
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[family](**{**sizes, **overrides}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        directory = tmp_path_factory.mktemp(family)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        made[key] = directory
        return directory

    return make


@pytest.fixture(scope="session")
def _policy(random_checkpoint: Callable[..., Path]) -> Policy:
    return Policy.load(random_checkpoint("llama"))


@pytest.fixture
def policy(_policy: Policy) -> Policy:
    """A tiny random policy, the test's own to train."""
    return _policy.copy()


@pytest.fixture
def weights() -> Callable[[Policy], torch.Tensor]:
    """All of a policy's weights as one vector, to compare bit for bit."""
    return lambda policy: torch.cat([p.detach().flatten().clone() for p in policy.decoder.parameters()])


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $STROP_HOME."""
    monkeypatch.setenv("STROP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
