from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Message, Request
from caiflow.engine.llm.chat_template import end_of_turn
from caiflow.engine.llm.render import Renderer

CHAT = ({"role": "user", "content": "How do I bake bread?"},)


@pytest.fixture(scope="module")
def tok(tiny: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture
def renderer(tok) -> Renderer:
    return Renderer(tok)


def test_chat_goes_through_the_template_once_and_ends_where_the_assistant_speaks(renderer: Renderer) -> None:
    assert renderer.text(Request(CHAT)) == "<|user|>How do I bake bread?\n<|assistant|>"


def test_prefill_continues_the_assistants_turn(renderer: Renderer, tok) -> None:
    request = Request(CHAT, prefill="The answer is (")
    assert tok.decode(renderer.ids(request)) == "<|user|>How do I bake bread?\n<|assistant|>The answer is ("


def test_a_plain_text_gets_no_template(renderer: Renderer, tok) -> None:
    assert tok.decode(renderer.ids(Request("Human: hello"))) == "Human: hello"


def test_a_given_template_replaces_the_tokenizers_own(renderer: Renderer) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert renderer.text(Request(CHAT, template=template)) == "[How do I bake bread?]"


def test_the_models_entry_can_bring_a_template(tok) -> None:
    assert Renderer(tok, "{{ messages[0].content }}!").text(Request(CHAT)) == "How do I bake bread?!"


def test_without_any_template_a_chat_is_refused_in_plain_words(tok) -> None:
    renderer = Renderer(tok)
    renderer.chat_template = ""
    with pytest.raises(EngineError, match="no chat template; give `chat_template`") as caught:
        renderer.ids(Request(CHAT))
    assert caught.value.kind == "template"


def test_two_bos_tokens_are_refused(tok) -> None:
    template = "<|bos|><|bos|>{{ messages[0].content }}"
    with pytest.raises(EngineError, match="two BOS tokens") as caught:
        Renderer(tok, template).ids(Request(CHAT))
    assert caught.value.kind == "double_bos"


def test_an_empty_prompt_is_refused(renderer: Renderer) -> None:
    with pytest.raises(EngineError, match="empty"):
        renderer.ids(Request(""))


def test_a_choice_is_the_token_that_follows_the_prefill(renderer: Renderer, tok) -> None:
    request = Request(CHAT, prefill="The answer is (", choices=("A", "B"))
    assert {k: tok.decode([v]) for k, v in renderer.choices(request).items()} == {"A": "A", "B": "B"}


@pytest.mark.parametrize(("choices", "says"), [(("A", "bread oven"), "not one token"), (("A", "A"), "same token")])
def test_choices_that_cannot_be_told_by_one_token_are_refused(renderer: Renderer, choices: tuple[str, ...], says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught:
        renderer.choices(Request(CHAT, prefill="The answer is (", choices=choices))
    assert caught.value.kind == "choices"


@settings(max_examples=100)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_encoding_in_remembered_pieces_changes_nothing(tok, parts: list[str]) -> None:
    between = "<|end|>\n<|assistant|>"
    renderer = Renderer(
        tok, "{% for m in messages %}{{ '<|user|>' if loop.first else '" + between + "' }}{{ m.content }}{% endfor %}"
    )
    text = "<|user|>" + between.join(parts)
    assert renderer._splitter is not None
    asked = Request(tuple({"role": "user", "content": part} for part in parts))
    assert renderer.ids(asked) == tok.encode(text, add_special_tokens=False)


def test_a_conversation_for_training_is_what_generation_sees_with_the_assistants_tokens_marked(renderer: Renderer, tok) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello there."},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "No."},
    ]
    rendered = renderer.conversation(messages)
    marked = [token for token, kept in zip(rendered.ids, rendered.mask, strict=True) if kept]
    assert tok.decode(marked) == "Hello there.<|end|>No.<|end|>"
    prompt = renderer.ids(Request(tuple(messages[:3])))
    assert rendered.ids[: len(prompt)] == prompt
    assert not any(rendered.mask[len(prompt) - 1 : len(prompt)])


def test_a_template_without_end_of_turn_gets_one_for_training(tok) -> None:
    rendered = Renderer(
        tok, "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    done = rendered.conversation([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}])
    assert tok.decode(done.ids) == "u:Hia:Yes<|end|>"
    assert done.mask[-1] == 1


def test_white_space_ends_no_turn_though_it_is_a_token_of_its_own() -> None:
    def laid_out(messages: Sequence[Message], *, prompt: bool) -> str:
        return "".join(f"{turn['role']}: {turn['content']}\n\n" for turn in messages) + "assistant:" * prompt

    assert end_of_turn(laid_out, ["\n\n", "<|x|>"], "</s>") == "</s>"


def test_a_template_that_rewrites_earlier_turns_cannot_be_trained_on(tok) -> None:
    renderer = Renderer(tok, "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(EngineError, match="rewrites earlier turns"):
        renderer.conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


def test_a_space_at_the_beginning_of_an_answer_is_kept_by_tokenizers_that_swallow_it(tok) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"\u2581a": 0, "\u2581b": 1, "?": 2, "\u2581x": 3, "\u2581y": 4}, unk_token="?"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    renderer = Renderer(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?"))
    assert renderer.decode([1], before=[0]) == " b"
    assert Renderer(tok).decode(tok.encode(" b"), before=tok.encode("a")) == " b"
