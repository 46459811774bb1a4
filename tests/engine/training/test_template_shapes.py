"""Chat templates of the shapes that are about, through every trainer: the very tokens that are learnt, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Message, Request, Sampling
from caiflow.engine.llm.load import load_engine
from caiflow.engine.llm.render import THOUGHTS, Renderer
from caiflow.engine.training.models import load_tokenizer
from caiflow.engine.training.tokens import (
    IGNORED,
    as_messages,
    conversations,
    labelled,
    preference_of,
    preferences,
    prompts,
    reply_ids,
)
from support.asking import ask
from support.chat_templates import SHAPES, SYSTEM, TALK, Shape, model_with, text
from support.small_models import saved
from support.trainings import train

BETTER: Message = {"role": "assistant", "content": "Bake it."}
PAIR = {"uid": "1", "prompt": TALK[:3], "chosen": "Bake it.", "rejected": "Find it."}


def under(shape: Shape) -> list[tuple[list[Message], str]]:
    """Return TALK without and with a system turn, each with what stands before its last reply."""
    talks = [(list(TALK), shape.prompt)]
    return talks if shape.under is None else [*talks, ([SYSTEM, *TALK], shape.under)]


def learnt(renderer: Renderer, ids: Any, labels: Any) -> str:
    pairs = [(int(token), int(label)) for token, label in zip(ids, labels, strict=True)]
    assert all(label in (token, IGNORED) for token, label in pairs)
    return text(renderer, [token for token, label in pairs if label != IGNORED])


def test_the_last_reply_alone_can_be_learnt_under_every_shape(shape: Shape, renderer: Renderer) -> None:
    for talk, prompt in under(shape):
        served = renderer.ids(Request(tuple(talk[:-1])))
        ids, labels = labelled(renderer, talk, "completion")
        assert text(renderer, served) == prompt
        assert ids[: len(served)] == served
        assert text(renderer, ids) == prompt + shape.reply
        assert learnt(renderer, ids, labels) == shape.reply
        assert renderer.tokenizer.eos_token_id == ids[-1], "generation stops where the reply that was learnt ends"


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_every_turn_is_learnt_or_refused_by_name(shape: Shape, renderer: Renderer, loss_on: Any) -> None:
    for talk, prompt in under(shape):
        if shape.earlier is None or (shape.system_moves and talk[0] == SYSTEM):
            with pytest.raises(EngineError, match=r"rewrites earlier turns.*loss_on: completion"):
                labelled(renderer, talk, loss_on)
            continue
        ids, labels = labelled(renderer, talk, loss_on)
        assert text(renderer, ids) == prompt + shape.reply
        expected = shape.earlier + shape.reply if loss_on == "assistant" else prompt + shape.reply
        assert learnt(renderer, ids, labels) == expected


def test_one_question_and_its_answer_are_learnt_alike_however_loss_falls(shape: Shape, renderer: Renderer) -> None:
    talk = [TALK[2], BETTER]
    assert labelled(renderer, talk, "assistant") == labelled(renderer, talk, "completion")
    assert learnt(renderer, *labelled(renderer, talk, "assistant")) == shape.reply


def test_sft_s_batches_hold_the_reply_and_nothing_after_it(shape: Shape, renderer: Renderer, tmp_path: Path) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = saved(tmp_path, [{"uid": "1", "messages": TALK}, {"uid": "2", "messages": [TALK[2], BETTER]}])
    data = conversations(rows, renderer, max_length=400, loss_on="completion").data
    batch = DataCollatorForLanguageModeling(pad_token_id=renderer.tokenizer.pad_token_id)(list(data))
    for ids, labels, prompt in zip(batch["input_ids"], batch["labels"], (shape.prompt, None), strict=True):
        assert learnt(renderer, ids, labels) == shape.reply
        assert prompt is None or text(renderer, ids) == prompt + shape.reply


def test_dpo_s_batches_mark_the_two_replies(shape: Shape, renderer: Renderer, tmp_path: Path) -> None:
    from caiflow.operators.training.preference import SoftCollator

    data = preferences(saved(tmp_path, [PAIR]), renderer, max_length=400).data
    batch = SoftCollator(pad_token_id=renderer.tokenizer.pad_token_id)(list(data))
    for ids, seen, counts, said in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], ("Bake it.", "Find it."), strict=True
    ):
        assert text(renderer, ids[seen == 1]) == shape.prompt + shape.reply.replace("Bake it.", said)
        assert text(renderer, ids[counts == 1]) == shape.reply.replace("Bake it.", said)


def test_a_reward_model_s_batches_end_where_the_replies_do(shape: Shape, renderer: Renderer, tmp_path: Path) -> None:
    from caiflow.operators.training.preference_model import SoftRewardCollator

    data = preferences(saved(tmp_path, [PAIR]), renderer, max_length=400).data
    batch = SoftRewardCollator(pad_token_id=renderer.tokenizer.pad_token_id)(list(data))
    for ids, seen, said in zip(batch["input_ids"], batch["attention_mask"], ("Bake it.", "Find it."), strict=True):
        assert text(renderer, ids[seen == 1]) == shape.prompt + shape.reply.replace("Bake it.", said)


def test_a_judge_is_asked_for_one_token_behind_its_prefill(shape: Shape, renderer: Renderer) -> None:
    request = Request(TALK[:3], prefill="The answer is (", choices=("A", "B"))
    assert text(renderer, renderer.ids(request)) == f"{shape.prompt}The answer is ("
    assert [text(renderer, [token]) for token in renderer.choices(request).values()] == ["A", "B"]


def test_rl_asks_what_serving_asks(shape: Shape, renderer: Renderer, tmp_path: Path) -> None:
    (row,) = prompts(saved(tmp_path, [{"uid": "1", "prompt": TALK[:3]}]), renderer, max_length=400).data
    assert text(renderer, renderer.ids(Request(tuple(row["prompt"])))) == shape.prompt


WORDS = (
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=24)
    .map(str.strip)
    .filter(lambda said: said and not said.startswith(tuple(THOUGHTS)))
)
"""What may be said: white space around a turn is left out, since some templates take it off; a mark would begin a thought."""
EARLIER = st.lists(st.tuples(WORDS, WORDS), max_size=2)


@given(EARLIER, WORDS, WORDS)
@settings(max_examples=15)
def test_tokens_that_are_sampled_are_those_that_are_learnt(
    shape: Shape, renderer: Renderer, earlier: list[tuple[str, str]], question: str, words: str
) -> None:
    """A model that writes what it learnt is read as having said those words, and learns the same tokens from them again."""
    talk: list[Message] = [
        turn for asked, said in earlier for turn in ({"role": "user", "content": asked}, {"role": "assistant", "content": said})
    ]
    talk = [*talk, {"role": "user", "content": question}]
    head, sampled = reply_ids(renderer, talk, {"role": "assistant", "content": words})
    said, _ = renderer.answer(Request(tuple(talk)), sampled[:-1], head)
    assert said == words, shape
    assert reply_ids(renderer, talk, {"role": "assistant", "content": said}) == (head, sampled)
    reply: Message = {"role": "assistant", "content": said}
    assert labelled(renderer, [*talk, reply], "completion") == (head + sampled, [IGNORED] * len(head) + sampled), "sft"
    pair = preference_of({"prompt": talk, "chosen": said, "rejected": f"{said} No."})
    assert reply_ids(renderer, *pair[:2]) == (head, sampled), "dpo and reward"
    assert renderer.ids(Request(tuple(as_messages(talk)))) == head, "rl, whose replies are learnt as they were drawn"


@given(EARLIER, WORDS, WORDS, st.booleans())
@settings(max_examples=10)
def test_thoughts_are_never_taken_for_words(
    shape: Shape, renderer: Renderer, earlier: list[tuple[str, str]], words: str, thought: str, tokens: bool
) -> None:
    """Marks that are tokens of the model and those that are none, before words that the template begins as it likes."""
    talk: tuple[Message, ...] = tuple({"role": "user", "content": asked} for asked, _ in earlier[:1]) or TALK[:1]
    marks = THOUGHTS["<think>"] in shape.tokens and tokens
    begin, end = ("<think>", THOUGHTS["<think>"]) if marks else ("[THINK]", THOUGHTS["[THINK]"])
    thought = thought.replace("[", "")
    opened, closed = (renderer.tokenizer.encode(mark, add_special_tokens=False) for mark in (f"{begin}\n", f"\n{end}\n\n"))
    ids = opened + renderer.words(thought) + closed + renderer.words(words)  # neither words nor thoughts are special tokens
    head = renderer.ids(Request(talk))
    assert renderer.answer(Request(talk), ids, head) == (words, thought)
    assert renderer.answer(Request(talk), ids[: -len(renderer.words(words)) - 4], head)[0] == ""


def test_a_thought_that_the_prompt_opens_ends_where_the_model_ends_it(tmp_path: Path) -> None:
    """A model that was taught to reply at once never ends it: what it says is its reply, unless it was cut off."""
    opens = SHAPES["qwen-3"].template.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    model = model_with(tmp_path, SHAPES["qwen-3"]._replace(template=opens))
    renderer = Renderer(load_tokenizer(model))
    request = Request(TALK[:1], Sampling(max_tokens=4))
    head = renderer.ids(request)
    assert text(renderer, head).endswith("<think>\n")
    asked, learnt = reply_ids(renderer, TALK[:1], BETTER)
    assert (asked, text(renderer, learnt)) == (head, "\n</think>\n\nBake it.<|im_end|>"), "it learns to end it at once"
    assert renderer.answer(request, learnt[:-1], head)[0] == "Bake it."
    ids = renderer.tokenizer.encode("Hm.\n</think>\n\nBake it.", add_special_tokens=False)
    assert renderer.answer(request, ids, head) == ("Bake it.", "Hm.")
    assert renderer.answer(request, ids[:2], head)[1] is None
    assert renderer.answer(request, ids[:2], head, cut=True)[0] == ""
    (answer,) = ask(load_engine(model), [request])
    assert isinstance(answer, EngineError)
    assert answer.kind == "empty"
    assert "no text after its reasoning" in str(answer)


def test_a_prefill_and_a_plain_text_are_gone_on_from_as_they_are(renderer: Renderer) -> None:
    ids = renderer.words(" Bake it. ")
    for request in (Request(tuple(TALK[:1]), prefill="Well,"), Request("How do I bake?")):
        assert renderer.answer(request, ids, renderer.ids(request)) == (" Bake it. ", None)


@pytest.mark.parametrize("trainer", ["sft", "dpo"])
def test_a_model_whose_template_drops_thoughts_is_trained(trainer: str, tmp_path: Path) -> None:
    model = model_with(tmp_path / "model", SHAPES["qwen-3"])
    done = train(tmp_path, trainer, model, **({"loss_on": "completion"} if trainer == "sft" else {}))
    assert done.metrics["final_loss"] < done.metrics["first_loss"]
