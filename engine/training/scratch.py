"""A small language model from nothing: a tokenizer trained on the rows, and random weights.

Owns the shape of such a model and its chat template; never trains the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from caiflow.engine.operator import Strict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Each turn is its role's token, the text, and the end token; the conversation begins with the begin token."""


class ScratchTokenizer(Strict):
    """The tokenizer that is trained on the rows."""

    vocab_size: int = Field(default=1024, ge=300)
    """Entries of the byte-level BPE vocabulary, control tokens included."""
    min_frequency: int = Field(default=2, ge=1)
    """A pair of tokens seen less often is never merged."""


class Scratch(Strict):
    """A Llama with random weights, for models small enough to be trained here from nothing."""

    tokenizer: ScratchTokenizer = ScratchTokenizer()
    """How the tokenizer is trained."""
    hidden_size: int = Field(default=128, ge=8)
    """Width of the model."""
    num_hidden_layers: int = Field(default=4, ge=1)
    """Number of transformer blocks."""
    num_attention_heads: int = Field(default=4, ge=1)
    """Attention heads per block; they share the width."""
    num_key_value_heads: int | None = Field(default=None, ge=1)
    """Heads of keys and values; by default as many as attention heads."""
    intermediate_size: int | None = Field(default=None, ge=8)
    """Width inside the feed-forward layers; by default 8/3 of the width, rounded up to a multiple of 8."""
    max_position_embeddings: int = Field(default=8192, ge=16)
    """Longest context in tokens."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary position embedding."""
    tie_word_embeddings: bool = True
    """Use the token embedding as output head too."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the random weights."""
    chat_template: str | None = None
    """Jinja text that lays out a conversation; by default a plain one, turn by turn with a role token each."""

    def settings(self, vocabulary: int | None = None) -> dict[str, Any]:
        """Return what the model's config.json has of this shape; the tokenizer may come to fewer entries than it may have."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "tie_word_embeddings")
        return {
            **{name: getattr(self, name) for name in (*names, "initializer_range")},
            "vocab_size": vocabulary or self.tokenizer.vocab_size,
            "intermediate_size": self.intermediate_size or -(-self.hidden_size * 8 // 24) * 8,
            "num_key_value_heads": self.num_key_value_heads or self.num_attention_heads,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
        }


def train_tokenizer(texts: Iterable[str], scratch: Scratch) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer on `texts`; any text encodes and decodes without loss.

    Merges never cross a change between letters, digits, punctuation and spaces, so that in `(A)` the letter is one token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=scratch.tokenizer.vocab_size,
        min_frequency=scratch.tokenizer.min_frequency,
        special_tokens=[PAD, BEGIN, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=scratch.chat_template or CHAT_TEMPLATE,
        model_max_length=scratch.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def random_model(scratch: Scratch, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return a Llama of that shape with random float32 weights, the same for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(seed)
    config = LlamaConfig(**scratch.settings(len(tokenizer)), **_special_ids(tokenizer))
    model = LlamaForCausalLM(config)
    model.generation_config.update(**_special_ids(tokenizer))
    return model


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
