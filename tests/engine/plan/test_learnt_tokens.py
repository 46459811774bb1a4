"""Whether a training learns the tokens that engines sample is known before it runs, and where it doesn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.render import Renderer
from caiflow.engine.llm.tokenizer_files import TokenizerFiles
from caiflow.engine.plan.learnt_tokens import Learnt, Renderers, learnt_tokens, parting, renderers
from caiflow.engine.spec.load import load_spec
from caiflow.engine.training.models import load_tokenizer
from support.chat_templates import SHAPES, TALK, WITH_TOOLS, model_with
from support.small_models import small_model

TRIMMED = {"llama-3", "gemma"}
"""Shapes that take white space off a reply."""


@pytest.fixture(scope="module", params=sorted(SHAPES))
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(shape: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    model_with(place, SHAPES[shape])
    return place


@pytest.fixture(scope="module")
def pair(folder: Path) -> Renderers:
    return renderers(TokenizerFiles(folder), folder)


def test_what_is_learnt_is_what_is_sampled_but_for_white_space_at_its_edges(shape: str, pair: Renderers) -> None:
    found = list(parting(*pair, tools=True))
    edges = [part for part in found if "with white space: token" in part]
    assert len(edges) == (2 if shape in TRIMMED else 0), found
    thoughts = [part for part in found if part not in edges]
    assert [part.partition(":")[0] for part in thoughts] == (THINKING if shape == "qwen-3" else []), found


THINKING = ["a reply after a thought, of which the words alone are learnt", "a reply with a thought in its text"]


def test_a_template_that_thinks_has_the_places_named_where_the_thought_is_lost_or_spelled_out(tmp_path: Path) -> None:
    model_with(tmp_path, SHAPES["qwen-3"])
    lost, spelled = parting(*renderers(TokenizerFiles(tmp_path), tmp_path))
    assert "token 2, sampled 'Hm.\\n</think>\\n', learnt '\\n</think>\\n\\nQu" in lost
    assert "token 2, sampled 'Hm.\\n</think>\\n', learnt '\\n</think>\\n\\n<t" in spelled


def test_calls_of_tools_are_looked_at_where_they_are_learnt(tmp_path: Path) -> None:
    """Under a template that writes the tokenizer's EOS first, and ends turns with another token."""
    source = small_model(tmp_path)
    ends_otherwise = "{{ eos_token }}" + WITH_TOOLS.replace("{{ eos_token }}", "<|system|>")
    for template, told in ((WITH_TOOLS, []), (ends_otherwise, ["the call of a tool", "a reply after a tool"])):
        pair = renderers(TokenizerFiles(tmp_path, template), Path(source.path))
        found = [part for part in parting(*pair, "assistant", tools=True) if "tool" in part]
        assert [part.partition(":")[0] for part in found] == [f"the prompt of {what}" for what in told]
        assert not [part for part in parting(*pair, "assistant") if "tool" in part], "dpo, reward and rl take none"


@given(words=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=24))
@settings(max_examples=10)
def test_the_file_s_tokens_are_the_library_s(folder: Path, pair: Renderers, words: str) -> None:
    renderer = pair[1]
    library = _LIBRARY.setdefault(folder, Renderer(load_tokenizer(ModelSource(path=str(folder), identity="m"))))
    talk: list[Any] = [*TALK[:2], {"role": "user", "content": f"a{words}"}, {"role": "assistant", "content": f"b{words}"}]
    assert renderer.prompt_ids(talk[:3]) == library.prompt_ids(talk[:3])
    assert renderer.conversation(talk, last=True) == library.conversation(talk, last=True)
    assert renderer.end_of_turn == library.end_of_turn


_LIBRARY: dict[Path, Renderer] = {}


def test_an_end_of_turn_that_training_puts_into_the_prompt_is_named_with_the_place(tmp_path: Path) -> None:
    """A template that writes the tokenizer's EOS before the first turn, and ends turns with another token."""
    phi = SHAPES["phi"]
    model_with(tmp_path, phi._replace(template="{{ eos_token }}" + phi.template))
    found = list(parting(*renderers(TokenizerFiles(tmp_path), tmp_path)))
    assert found[0].startswith("the prompt of a question: token 0, sampled '<|endoftext|>")
    assert "learnt '<|end|>" in found[0]


def test_a_template_that_says_another_thing_than_was_said_is_named_with_the_place(tmp_path: Path) -> None:
    chatml = SHAPES["chatml"]
    louder = chatml.template.replace("{{ m.content }}", "{{ m.content | upper if m.role == 'assistant' else m.content }}")
    model_with(tmp_path, chatml._replace(template=louder))
    found = list(parting(*renderers(TokenizerFiles(tmp_path), tmp_path)))
    assert "the reply to a question: 'Quite.' is read as 'QUITE.'" in found


SPEC = """\
caiflow: 1
models: {base: {source: MODEL}, hosted: {source: m, base_url: "http://127.0.0.1:9/v1"}}
steps:
  rows: {op: load, source: tiny:helpful_train.jsonl}
  sl: {op: sft, input: rows, model: base}
  more: {op: sft, input: rows, model: sl, loss_on: completion}
"""


def test_each_training_of_a_spec_has_the_template_of_the_model_that_it_came_from(tmp_path: Path) -> None:
    model_with(tmp_path / "model", SHAPES["gemma"])
    (tmp_path / "spec.yaml").write_text(SPEC.replace("MODEL", str(tmp_path / "model")))
    found = list(learnt_tokens(load_spec(tmp_path / "spec.yaml")))
    assert [one.step for one in found] == ["sl", "more"]
    assert all(one.checked and "begins with white space" in one.parts[0] for one in found)
    (tmp_path / "model" / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    assert list(learnt_tokens(load_spec(tmp_path / "spec.yaml"))) == [Learnt("sl", False), Learnt("more", False)]
