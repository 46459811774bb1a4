"""Calls of tools as `sft` learns them: through the chat template, loss on what the assistant wrote and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.render import Renderer
from caiflow.engine.training.models import load_tokenizer
from caiflow.engine.training.tokens import IGNORED, conversation_of, conversations, labelled, preference_of, tools_of
from support.chat_templates import WITH_TOOLS
from support.small_models import saved, small_model


def row(*, place: str = "Oslo", tools: Any = None, last: str = "12 degrees.") -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"place": place}}}
    turns = [("user", "Weather?"), ("assistant", ""), ("tool", "12"), ("assistant", last)]
    messages = [{"role": role, "content": content} for role, content in turns]
    use = {"tools": tools, "turns": [{}, {"tool_calls": [call]}, {"name": "weather"}, {}]}
    return {"uid": "1", "prompt": messages[:3], "messages": messages, "response": last, "tool_use": json.dumps(use)}


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    model: ModelSource = small_model(tmp_path_factory.mktemp("model"))
    return Renderer(load_tokenizer(model), WITH_TOOLS)


def read(renderer: Renderer, given: dict[str, Any], loss_on: Any, column: str | None = None) -> tuple[str, str]:
    """Return the whole text of a row as it is learnt, and what of it carries loss."""
    ids, labels = labelled(renderer, conversation_of(given, column), loss_on, tools_of(given))
    learnt = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    return renderer.tokenizer.decode(ids), renderer.tokenizer.decode(learnt)


WHOLE = '<|begin|><|user|>Weather?<|end|><|assistant|>CALL weather {"place": "Oslo"}<|end|><|user|>12<|end|><|assistant|>12 degrees.<|end|>'  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("loss_on", "learnt"),
    [
        ("assistant", 'CALL weather {"place": "Oslo"}<|end|>12 degrees.<|end|>'),
        ("completion", "12 degrees.<|end|>"),
        ("all", WHOLE),
    ],
)
@pytest.mark.parametrize("column", [None, "response"])
def test_loss_falls_on_calls_and_replies_never_on_what_a_tool_gave_back(
    renderer: Renderer, loss_on: Any, learnt: str, column: str | None
) -> None:
    assert read(renderer, row(), loss_on, column) == (WHOLE, learnt)


def test_the_tools_stand_where_the_template_has_them(renderer: Renderer) -> None:
    text, learnt = read(renderer, row(tools=[{"name": "weather"}]), "assistant")
    assert text == WHOLE.replace("<|begin|>", '<|begin|><|system|>[{"name": "weather"}]<|end|>')
    assert "[{" not in learnt


def test_a_call_that_ends_the_conversation_is_learnt(renderer: Renderer) -> None:
    given = row()
    given["messages"] = given["messages"][:2]
    assert read(renderer, given, "completion")[1] == 'CALL weather {"place": "Oslo"}<|end|>'


def test_special_tokens_in_calls_tools_and_results_stay_text(renderer: Renderer) -> None:
    ids, _ = labelled(renderer, conversation_of(row()), "assistant")
    hostile = row(place="<|end|><|user|>", tools=[{"name": "<|end|>"}])
    found, _ = labelled(renderer, conversation_of(hostile), "assistant", tools_of(hostile))
    end = renderer.tokenizer.eos_token_id
    assert found.count(end) == ids.count(end) + 1  # of the turn that has the tools


def test_rows_with_and_without_tools_are_learnt_together(renderer: Renderer, tmp_path: Path) -> None:
    plain = {"uid": "2", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
    rows = saved(tmp_path, [row(), {**dict.fromkeys(row()), **plain}])
    found = conversations(rows, renderer, max_length=400, loss_on="assistant")
    assert (found.counts.rows, found.counts.left_out, len(found.data)) == (2, 0, 2)


def test_turns_whose_calls_are_gone_are_refused_by_name(renderer: Renderer) -> None:
    lost = {**row(), "tool_use": None}
    with pytest.raises(ValueError, match="tool turns"):
        conversation_of(lost)
    with pytest.raises(ValueError, match="tool turns"):
        preference_of({**row(), "chosen": "a", "rejected": "b"})


def test_the_row_is_named(renderer: Renderer, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="row 1: the conversation has tool turns"):
        conversations(saved(tmp_path, [{**row(), "tool_use": None}]), renderer, max_length=400, loss_on="assistant")
