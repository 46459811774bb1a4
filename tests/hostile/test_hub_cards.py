"""A data set of the hub is a stranger's too: its card names its own files, or it isn't read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import WrongValue
from caiflow.operators.formats.hub.splits import Part, files_of, rows_of

TRAIN = Part("train", None, None)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "letters.jsonl").write_text('{"prompt": "TOP-SECRET"}\n')
    (tmp_path / "own.jsonl").write_text('{"prompt": "a"}\n')
    return tmp_path / "letters.jsonl"


CARDS = {
    "absolute": "{outside}",
    "absolute, by split": "[{{split: train, path: '{outside}'}}]",
    "one of several": "[own.jsonl, '{outside}']",
    "above": "../../../../../../../..{outside}",
    "a pattern": "{folder}/lett*.jsonl",
    "by /proc": "/proc/self/root{outside}",
    "another split's": "[{{split: train, path: own.jsonl}}, {{split: validation, path: '{outside}'}}]",
}


@pytest.mark.parametrize("written", CARDS.values(), ids=CARDS)
def test_a_card_names_no_file_of_this_machine(outside: Path, written: str) -> None:
    named = written.format(outside=outside, folder=outside.parent)
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {named}\n---\n"
    own = outside.with_name("own.jsonl")
    for told in (_told(files_of, ["own.jsonl"], card), _told(rows_of, {"own.jsonl": own}, card)):
        assert "TOP-SECRET" not in told
        assert "letters.jsonl" not in told.partition("its card names")[0]


def _told(ask: Callable[..., Any], files: Any, card: str) -> str:
    """Return what comes of asking: the answer, or why there is none."""
    try:
        return str(list(ask(TRAIN, files, card, "org/data")))
    except WrongValue as refused:
        return str(refused)


def test_its_own_files_are_read(outside: Path) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files: own.jsonl\n---\n"
    own = outside.with_name("own.jsonl")
    assert files_of(TRAIN, ["own.jsonl"], card, "org/data") == ["own.jsonl"]
    assert list(rows_of(TRAIN, {"own.jsonl": own}, card, "org/data")) == [{"prompt": "a"}]
