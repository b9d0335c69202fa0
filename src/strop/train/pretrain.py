"""Pretraining: SFT's loop on plain text, every token learnt, from fresh weights or a given model."""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from pydantic import BaseModel, ConfigDict, Field

from strop.errors import StropError
from strop.ledger import Ledger
from strop.model.decoder import Decoder, Shape
from strop.model.renderer import PLAIN_TEMPLATE, Renderer
from strop.sampling.policy import Policy
from strop.train.loop import Stage, Step, TrainConfig, train
from strop.train.sft import CrossEntropy, epochs, weighed
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

    text: str = Field("nano", description="nano or nano-words: generated; else a .txt, .jsonl or .parquet file")
    new: NewModel | None = Field(None, description="start from fresh weights of this shape")
    steps: int = Field(1000, ge=0)
    batch_size: int = Field(128, gt=0, description="documents per update")
    max_length: int = Field(400, gt=1, description="tokens a document is cut to")


def new_policy(new: NewModel, texts: Iterable[str], seed: int) -> Policy:
    """Fresh weights, and byte-level BPE trained on `texts`; digits stand alone, so tokens hold a number's value."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    pieces = [pre_tokenizers.Split(Regex(r" ?\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=new.vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END)
    tokenizer.chat_template, tokenizer.model_max_length = PLAIN_TEMPLATE, new.context
    sizes = {"vocab_size": new.vocab, "hidden_size": new.hidden, "intermediate_size": new.intermediate}
    sizes |= {"num_hidden_layers": new.layers, "num_attention_heads": new.heads, "max_position_embeddings": new.context}
    sizes |= {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    kind = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    config = LlamaConfig(**kind, **sizes).to_dict()
    decoder = Decoder(Shape.from_hf(config)).eval()
    decoder.init_weights(seed)
    return Policy(decoder, Renderer(tokenizer), config)


def document_datum(renderer: Renderer, text: str, max_length: int) -> Datum:
    """A document between two end-of-text tokens, every token learnt."""
    end = renderer.tokenizer.eos_token_id
    ids = [end, *renderer.encode(text), end][:max_length]
    return Datum.from_tokens(ids, [1.0] * len(ids))


def pretrain(
    policy: Policy, text: Callable[[int], Iterable[str]] | Sequence[str], config: PretrainConfig, stage: Stage
) -> Ledger:
    """Train `policy` in place on documents: a sequence taken in epochs, or an endless supply from each step's seed."""
    room = min(config.max_length, policy.decoder.shape.max_positions)

    def datums(documents: Iterable[str]) -> list[Datum]:
        return [document_datum(policy.renderer, document, room) for document in documents]

    def fresh(step: int) -> Step:
        assert callable(text)
        return weighed(datums(islice(text((stage.seed << 24) + step), config.batch_size)))

    if not text:
        raise StropError("pretrain: no text to learn from")
    source = fresh if callable(text) else epochs(datums(text), config.batch_size, stage.seed)
    return train(policy, source, CrossEntropy(), config, config.steps, stage)
