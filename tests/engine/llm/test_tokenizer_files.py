"""What is read of a tokenizer's files is what the loaded tokenizer does, for templates of every shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.render import Renderer
from caiflow.engine.llm.tokenizer_files import TokenizerFiles
from support.chat_templates import SYSTEM, TALK, Shape, model_with


@pytest.fixture(scope="module")
def folder(shape: Shape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(model_with(tmp_path_factory.mktemp("model"), shape).path)


def test_it_is_what_the_loaded_tokenizer_does(shape: Shape, folder: Path) -> None:
    from transformers import AutoTokenizer

    loaded, read = AutoTokenizer.from_pretrained(folder), TokenizerFiles(folder)
    assert (read.size, read.eos, read.template) == (len(loaded), loaded.eos_token, loaded.chat_template)
    assert read.end_of_turn == Renderer(loaded).end_of_turn
    talks = [TALK, TALK[:1]] if shape.under is None else [TALK, (SYSTEM, *TALK), (SYSTEM, TALK[0])]
    for talk in talks:
        for prompt in (True, False):
            assert read.render(talk, prompt=prompt) == loaded.apply_chat_template(
                list(talk), tokenize=False, add_generation_prompt=prompt
            )


def test_a_template_tells_what_it_refuses_and_rewrites(shape: Shape, folder: Path) -> None:
    read = TokenizerFiles(folder)
    assert read.refuses_system == (shape.under is None)
    assert read.rewrites_turns(system=False) == (shape.earlier is None)
    if shape.under is not None:
        assert read.rewrites_turns(system=True) == (shape.earlier is None or shape.system_moves)


def test_the_template_of_the_entry_stands_before_the_tokenizer_s_own(folder: Path) -> None:
    given = TokenizerFiles(folder, "{% generation %}{{ messages[0].content | tojson }}{% endgeneration %}")
    assert given.render([{"role": "user", "content": "é<"}], prompt=True) == '"é<"'


def test_a_template_of_several_by_name_is_the_default_one(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, "eos_token": {"content": "</s>"}}))
    read = TokenizerFiles(tmp_path)
    assert (read.template, read.eos, read.size, read.end_of_turn) == ("d", "</s>", None, "</s>")


def test_where_there_are_no_files_nothing_is_told(tmp_path: Path) -> None:
    read = TokenizerFiles(tmp_path)
    assert (read.template, read.eos, read.size, read.refuses_system) == ("", None, None, False)
    assert not read.rewrites_turns(system=True)


@pytest.mark.parametrize("template", ["{{ messages[9].content.missing }}", "{% for %}", "{{ raise_exception('no') }}"])
def test_what_a_template_raises_is_told(tmp_path: Path, template: str) -> None:
    with pytest.raises(EngineError, match="the chat template refuses the conversation"):
        TokenizerFiles(tmp_path, template).render(TALK, prompt=False)
