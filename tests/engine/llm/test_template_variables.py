"""An entry's `chat_template_kwargs` hold for whoever renders its chat template: engines, servers, trainings and checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from caiflow.engine.llm.base import Message, ModelSource, Request
from caiflow.engine.llm.chat_template import with_variables
from caiflow.engine.llm.files import load_renderer
from caiflow.engine.llm.jinja.chat import laid_out
from caiflow.engine.llm.served.chat import Dialect
from caiflow.engine.llm.tokenizer_files import TokenizerFiles
from caiflow.engine.plan.model_identity import resolve_model
from caiflow.engine.spec.grammar import ModelEntry
from caiflow.engine.training.models import load_tokenizer
from support.chat_templates import SHAPES, model_with

THINKS = """\

{% macro closed() %}{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endmacro %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{{ closed() }}{% endif %}"""
"""A template that closes the thought itself where thinking is off, and whose first line break counts."""
ASKED: tuple[Message, ...] = ({"role": "user", "content": "Why?"},)
OFF = {"enable_thinking": False}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return model_with(tmp_path_factory.mktemp("thinks") / "model", SHAPES["chatml"]._replace(template=THINKS))


def entry(source: ModelSource, **fields: Any) -> ModelSource:
    return resolve_model("base", ModelEntry(source=source.path, **fields), Path())


@pytest.mark.parametrize("variables", [OFF, {"enable_thinking": True}, {}])
@pytest.mark.parametrize("given", ["own", "entry"])
def test_a_prompt_is_what_transformers_makes_of_it(source: ModelSource, variables: dict[str, Any], given: str) -> None:
    resolved = entry(source, chat_template_kwargs=variables, **({"chat_template": THINKS} if given == "entry" else {}))
    renderer = load_renderer(resolved)
    expected = load_renderer(source).tokenizer.apply_chat_template(
        list(ASKED), tokenize=False, add_generation_prompt=True, **variables
    )
    assert renderer.text(Request(ASKED)) == expected
    assert ("</think>" in expected) == (variables == OFF)
    files = TokenizerFiles(Path(source.path), THINKS if given == "entry" else "", variables)
    assert files.render(ASKED, prompt=True) == expected


def test_training_renders_so_and_saves_a_template_that_does(source: ModelSource, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(entry(source, chat_template_kwargs=OFF))
    tokenizer.save_pretrained(tmp_path)
    saved = load_renderer(ModelSource(path=str(tmp_path), identity=""))
    assert saved.text(Request(ASKED)) == load_renderer(entry(source, chat_template_kwargs=OFF)).text(Request(ASKED))
    assert saved.text(Request(ASKED)).endswith("</think>\n\n")


def test_other_values_are_another_model(source: ModelSource) -> None:
    found = {entry(source, chat_template_kwargs=given).identity for given in ({}, OFF, {"enable_thinking": True})}
    assert len(found) == 3


def test_a_server_is_sent_them_with_conversations_alone() -> None:
    dialect = Dialect("model", template_variables=OFF)
    assert dialect.call(Request(ASKED))[1]["chat_template_kwargs"] == OFF
    assert "chat_template_kwargs" not in dialect.call(Request("Once"))[1]
    assert "chat_template_kwargs" not in Dialect("model").call(Request(ASKED))[1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


SAME = "{% for item in [it] %}{% if item == messages[0].content %}same{% endif %}{% endfor %}"


@given(VALUES)
def test_any_value_of_yaml_arrives(value: Any) -> None:
    asked: Any = [{"role": "user", "content": value}]
    assert laid_out(with_variables(SAME, {"it": value}), asked, {}, prompt=True) == "same"


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "bos_token", "a b", "x %}{{ 1 }}{% set y", "", "1st"])
def test_what_no_template_can_be_given_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="a template is given no variable"):
        ModelEntry(source="tiny", chat_template_kwargs={name: 1})
