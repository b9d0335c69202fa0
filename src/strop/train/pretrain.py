"""Pretraining: SFT's loop on plain text, every token learnt, from fresh weights or a given model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from strop.errors import StropError
from strop.ledger import Ledger
from strop.model.decoder import Decoder, Shape
from strop.model.renderer import PLAIN_TEMPLATE, Renderer
from strop.sampling.policy import Policy
from strop.train.loop import Progress, StageDir, Step, TrainConfig, train
from strop.train.sft import CrossEntropy, epochs
from strop.types import Datum

END = "<|endoftext|>"


class NewModel(BaseModel):
    """The shape of a fresh Llama decoder and its byte-level BPE vocabulary."""

    model_config = ConfigDict(extra="forbid")

    vocab: int = Field(1024, ge=300)
    hidden: int = Field(160, gt=0)
    intermediate: int = Field(432, gt=0)
    layers: int = Field(5, gt=0)
    heads: int = Field(5, gt=0)
    context: int = Field(1024, gt=1)


class PretrainConfig(TrainConfig):
    """Language modelling on plain text."""

    text: str = Field("nano", description="nano: the generated base text; else a .txt, .jsonl or .parquet file")
    new: NewModel | None = Field(None, description="start from fresh weights of this shape")
    steps: int = Field(1000, ge=0)
    batch_size: int = Field(128, gt=0, description="documents per update")
    max_length: int = Field(400, gt=1, description="tokens a document is cut to")


def new_policy(shape: NewModel, texts: Iterable[str], seed: int) -> Policy:
    """A decoder with fresh weights and a tokenizer trained on `texts`: byte-level BPE whose digits
    stand alone (the first may carry its space), so that a number's value is in its tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r" ?\d"), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=END, model_max_length=shape.context
    )
    tokenizer.chat_template = PLAIN_TEMPLATE
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    decoder = Decoder(Shape.from_hf(config))
    decoder.init_weights(seed)
    return Policy(decoder.eval(), Renderer(tokenizer), config)


def document_datum(renderer: Renderer, text: str, max_length: int) -> Datum:
    """A document between two end-of-text tokens, every token learnt."""
    end = renderer.tokenizer.eos_token_id
    ids = [end, *renderer.encode(text), end][:max_length]
    return Datum.from_tokens(ids, [1.0] * len(ids))


def pretrain(
    policy: Policy,
    stream: Callable[[int], Iterable[str]] | None,
    texts: list[str],
    config: PretrainConfig,
    stage: StageDir,
    seed: int = 0,
    progress: Progress = lambda step, steps, metrics: None,
) -> Ledger:
    """Train `policy` in place on documents: `stream(seed)` makes an endless supply, each step taking
    its own seed, so that a resumed run needs no replay; else `texts` are gone through in epochs."""
    objective = CrossEntropy()

    def fresh(step: int) -> Step:
        assert stream is not None
        documents = islice(stream((seed << 24) + step), config.batch_size)
        datums = [document_datum(policy.renderer, text, config.max_length) for text in documents]
        return Step(datums, objective.denominator(datums))

    if stream is None and not texts:
        raise StropError("pretrain: no text to learn from")
    datums = [document_datum(policy.renderer, text, config.max_length) for text in texts]
    source = fresh if stream is not None else epochs(datums, config.batch_size, seed)
    return train(policy, source, objective, config, config.steps, stage, progress)
