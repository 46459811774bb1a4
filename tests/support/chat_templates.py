"""The shapes that chat templates have in the wild, each written anew and short, with what they make of one conversation.

Tokenizers with them are small and trained here; their special tokens are those of the shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from caiflow.engine.llm.base import Message, ModelSource
from caiflow.engine.training.scratch import random_model, train_tokenizer
from support.small_models import SHAPE, lessons

if TYPE_CHECKING:
    from caiflow.engine.llm.render import Renderer

SYSTEM: Message = {"role": "system", "content": "Be kind."}
TALK: tuple[Message, ...] = (
    {"role": "user", "content": "How do I bake?"},
    {"role": "assistant", "content": "Find the cake."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "Bake it."},
)

WITH_TOOLS = (
    "{{ bos_token }}{% if tools %}<|system|>{{ tools | tojson }}{{ eos_token }}{% endif %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}CALL {{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Over a small model's tokens: tools at the head, calls behind an assistant's words, results as turns of the user."""


class Shape(NamedTuple):
    """A template, its tokenizer's special tokens, and what it makes of TALK.

    `prompt` is what stands before the last reply, `under` the same under SYSTEM; None where the template refuses system turns.
    `earlier` is what the assistant's first turn teaches; None where it can't be told apart. `system_moves` where it can't
    under SYSTEM alone.
    """

    template: str
    tokens: tuple[str, ...]
    bos: str | None
    eos: str
    prompt: str
    under: str | None
    reply: str
    earlier: str | None
    system_moves: bool = False


_NO_SYSTEM = "{% if m.role == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
_CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_CHATML_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_CHATML_TALK = (
    "<|im_start|>user\nHow do I bake?<|im_end|>\n<|im_start|>assistant\nFind the cake.<|im_end|>\n"
    "<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
)
_LLAMA_3 = "<|start_header_id|>%s<|end_header_id|>\n\n"
_PHI_TALK = "<|user|>\nHow do I bake?<|end|>\n<|assistant|>\nFind the cake.<|end|>\n<|user|>\nAnd then?<|end|>\n<|assistant|>\n"
_OSS_HEAD = "<|start|>system<|message|>Knowledge cutoff: 2024-06<|end|>"
_OSS_TALK = (
    "<|start|>user<|message|>How do I bake?<|end|><|start|>assistant<|channel|>final<|message|>Find the cake.<|end|>"
    "<|start|>user<|message|>And then?<|end|><|start|>assistant"
)

SHAPES = {
    "llama-2": Shape(
        "{% set ns = namespace(system='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.system = '<<SYS>>\n' ~ m.content ~ '\n<</SYS>>\n\n' %}"
        "{% elif m.role == 'user' %}{{ bos_token ~ '[INST] ' ~ ns.system ~ m.content ~ ' [/INST]' }}{% set ns.system = '' %}"
        "{% else %}{{ ' ' ~ m.content ~ ' ' ~ eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"), "<s>", "</s>",
        "<s>[INST] How do I bake? [/INST] Find the cake. </s><s>[INST] And then? [/INST]",
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHow do I bake? [/INST] Find the cake. </s><s>[INST] And then? [/INST]",
        " Bake it. </s>", " Find the cake. </s>",
    ),
    "llama-3": Shape(
        "{{ bos_token }}{% for m in messages %}" + _LLAMA_3 % "{{ m.role }}" + "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}" + _LLAMA_3 % "assistant" + "{% endif %}",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>", "<|end_of_text|>",
        "<|begin_of_text|>" + _LLAMA_3 % "user" + "How do I bake?<|eot_id|>" + _LLAMA_3 % "assistant"
        + "Find the cake.<|eot_id|>" + _LLAMA_3 % "user" + "And then?<|eot_id|>" + _LLAMA_3 % "assistant",
        "<|begin_of_text|>" + _LLAMA_3 % "system" + "Be kind.<|eot_id|>" + _LLAMA_3 % "user" + "How do I bake?<|eot_id|>"
        + _LLAMA_3 % "assistant" + "Find the cake.<|eot_id|>" + _LLAMA_3 % "user" + "And then?<|eot_id|>"
        + _LLAMA_3 % "assistant",
        "Bake it.<|eot_id|>", "Find the cake.<|eot_id|>",
    ),
    "mistral-1": Shape(
        "{{ bos_token }}{% for m in messages %}" + _NO_SYSTEM
        + "{% if m.role == 'user' %}{{ '[INST] ' ~ m.content ~ ' [/INST]' }}"
        "{% else %}{{ m.content ~ eos_token ~ ' ' }}{% endif %}{% endfor %}",
        ("<s>", "</s>"), "<s>", "</s>",
        "<s>[INST] How do I bake? [/INST]Find the cake.</s> [INST] And then? [/INST]", None,
        "Bake it.</s>", "Find the cake.</s>",
    ),
    "mistral-3": Shape(  # its system turn goes into the last turn of the user, and nowhere once that is answered
        "{{ bos_token }}{% for m in messages if m.role != 'system' %}"
        "{% if m.role == 'user' and loop.last and messages[0].role == 'system' %}"
        "{{ '[INST] ' ~ messages[0].content ~ '\n\n' ~ m.content ~ '[/INST]' }}"
        "{% elif m.role == 'user' %}{{ '[INST] ' ~ m.content ~ '[/INST]' }}"
        "{% else %}{{ ' ' ~ m.content ~ eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>",
        "<s>[INST] How do I bake?[/INST] Find the cake.</s>[INST] And then?[/INST]",
        "<s>[INST] How do I bake?[/INST] Find the cake.</s>[INST] Be kind.\n\nAnd then?[/INST]",
        " Bake it.</s>", " Find the cake.</s>", system_moves=True,
    ),
    "qwen-2.5": Shape(  # as its base models: turns end with another token than the tokenizer's EOS
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
        "{% for m in messages %}" + _CHATML + "{% endfor %}" + _CHATML_PROMPT,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None, "<|endoftext|>",
        "<|im_start|>system\nYou are helpful.<|im_end|>\n" + _CHATML_TALK,
        "<|im_start|>system\nBe kind.<|im_end|>\n" + _CHATML_TALK,
        "Bake it.<|im_end|>", "Find the cake.<|im_end|>",
    ),
    "qwen-3": Shape(  # thoughts are kept behind the last question alone, and an answer without any gets empty ones there
        "{% set ns = namespace(asked=0) %}"
        "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
        "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.asked %}"
        "{{ '<think>\n' ~ (parts[0].split('<think>')[-1].strip() if parts | length > 1 else '') ~ '\n</think>\n\n' }}"
        "{% endif %}"
        "{{ parts[-1].strip() ~ '<|im_end|>\n' }}{% else %}" + _CHATML + "{% endif %}{% endfor %}" + _CHATML_PROMPT,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"), None, "<|im_end|>",
        _CHATML_TALK, "<|im_start|>system\nBe kind.<|im_end|>\n" + _CHATML_TALK,
        "<think>\n\n</think>\n\nBake it.<|im_end|>", None,
    ),
    "gemma": Shape(
        "{{ bos_token }}{% for m in messages %}" + _NO_SYSTEM
        + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>",
        "<bos><start_of_turn>user\nHow do I bake?<end_of_turn>\n<start_of_turn>model\nFind the cake.<end_of_turn>\n"
        "<start_of_turn>user\nAnd then?<end_of_turn>\n<start_of_turn>model\n", None,
        "Bake it.<end_of_turn>", "Find the cake.<end_of_turn>",
    ),
    "chatml": Shape(
        "{% for m in messages %}" + _CHATML + "{% endfor %}" + _CHATML_PROMPT,
        ("<|im_start|>", "<|im_end|>"), None, "<|im_end|>",
        _CHATML_TALK, "<|im_start|>system\nBe kind.<|im_end|>\n" + _CHATML_TALK,
        "Bake it.<|im_end|>", "Find the cake.<|im_end|>",
    ),
    "phi": Shape(  # a finished conversation ends with the tokenizer's EOS, wherever it is finished
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), None, "<|endoftext|>",
        _PHI_TALK, "<|system|>\nBe kind.<|end|>\n" + _PHI_TALK,
        "Bake it.<|end|>", "Find the cake.<|end|>",
    ),
    "gpt-oss": Shape(  # the last turn ends otherwise than those before; system turns are the developer's
        _OSS_HEAD + "{% for m in messages %}{% if m.role == 'assistant' %}"
        "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
        "{% else %}<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ("<|endoftext|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"), None, "<|return|>",
        _OSS_HEAD + _OSS_TALK, _OSS_HEAD + "<|start|>developer<|message|>Be kind.<|end|>" + _OSS_TALK,
        "<|channel|>final<|message|>Bake it.<|return|>", None,
    ),
}  # fmt: skip


def model_with(folder: Path, shape: Shape) -> ModelSource:
    """Save a small random model whose tokenizer has the template and the special tokens of a shape."""
    from transformers import PreTrainedTokenizerFast

    texts = [turn["content"] for row in lessons() for turn in row["messages"]]
    plain = train_tokenizer(texts, SHAPE).backend_tokenizer
    plain.add_special_tokens(list(shape.tokens))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token=shape.bos, eos_token=shape.eos, chat_template=shape.template,
        model_max_length=SHAPE.max_position_embeddings, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    random_model(SHAPE, tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSource(path=str(folder), identity=folder.name)


def text(renderer: Renderer, ids: Iterable[int]) -> str:
    """Return what token ids stand for, special tokens as they are written."""
    return str(renderer.tokenizer.decode([int(number) for number in ids]))
