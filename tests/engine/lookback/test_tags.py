"""Tags and notes on runs: what is said stays with the run and is found again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from caiflow.engine.lookback.tags import FILE, Said, said_of
from support.commands import command_here
from support.made_runs import made_run, plain_rows


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        made_run(tmp_path / "home", tmp_path / name, plain_rows(4))
    return tmp_path


def given(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command_here(place, *arguments, CAIFLOW_HOME=str(place / "home"), COLUMNS="200")


def test_what_is_said_of_a_run_is_shown_and_found(place: Path) -> None:
    assert given(place, "tag", "first", "paper", "base:1", "--note", "Look at row 3.").returncode == 0
    assert given(place, "tag", "first").stdout == "tags: base:1, paper\nnote: Look at row 3.\n"
    assert "#paper" in given(place, "show", "first").stdout
    runs = json.loads(given(place, "runs", "--tag", "paper", "--json").stdout)["runs"]
    assert [(Path(run["path"]).name, run["tags"], run["note"]) for run in runs] == [
        ("first", ["base:1", "paper"], "Look at row 3.")
    ]
    listed = given(place, "runs").stdout
    assert "#base:1  #paper  Look at row 3." in listed
    assert given(place, "runs", "--tag", "none").stdout == "no run has the tag none\n"


def test_tags_are_taken_away_and_notes_replaced(place: Path) -> None:
    given(place, "tag", "first", "a", "b", "--note", "one")
    given(place, "tag", "first", "c", "--remove", "a", "--note", "two")
    assert said_of(place / "first") == Said(("b", "c"), "two")
    given(place, "tag", "first", "--note", "")
    assert said_of(place / "first") == Said(("b", "c"), "")
    assert said_of(place / "second") == Said()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["two words"], "'two words' is no tag"),
        ([""], "'' is no tag"),
        (["--remove", "gone"], "it has no tag 'gone'; it has none"),
    ],
)
def test_what_cannot_be_said_is_refused(place: Path, arguments: list[str], said: str) -> None:
    done = given(place, "tag", "first", *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (place / "first" / FILE).exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tags": 3, "note": 1}', "\udcff"])
def test_a_broken_file_says_nothing(place: Path, content: str) -> None:
    (place / "first" / FILE).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert said_of(place / "first") == Said()
    assert given(place, "runs").returncode == 0
