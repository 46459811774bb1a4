"""`caiflow head`: what `load` makes of a file, seen before there is a spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.commands import command_here
from support.tables import write_jsonl

PAIR = {"id": 7, "system": "Be kind.", "prompt": "Why?", "chosen": "So.", "rejected": "No.", "images": "a.png"}
CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "preference": (PAIR, ["system", "prompt", "chosen", "rejected"], ["id", "images"]),
    "alpaca": (
        {"instruction": "Sort.", "input": "2 1", "output": "1 2", "source": "s"},
        ["instruction", "input", "output"],
        ["source"],
    ),
    "ranked": (
        {"prompt": "Why?", "answers": ["So.", "No."], "scores": [1, 2], "lang": "en"},
        ["prompt", "answers", "scores"],
        ["lang"],
    ),
    "table": ({"goal": "Why is it so?", "target": "So."}, [], ["goal", "target"]),
}


def head(folder: Path, *arguments: str, code: int = 0) -> Any:
    done = command_here(folder, "head", *arguments, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_the_format_its_reason_and_the_columns_are_told(tmp_path: Path, name: str) -> None:
    record, used, kept = CASES[name]
    write_jsonl(tmp_path / "a.jsonl", [record] * 4)
    told = head(tmp_path, "a.jsonl", "--limit", "2")
    assert (told["format"], told["used"], told["kept"], len(told["rows"])) == (name, used, kept, 2)
    assert told["because"]
    assert told["problems"] == told["bad"] == []
    assert told["notes"][:1] == {
        "table": ["no column is a prompt; to make one: `rename: {goal: prompt}`"],
        "preference": ["`images` is kept as a column, and no part of `prompt` or of a reply"],
    }.get(name, [])


def test_a_field_that_another_takes_the_place_of_is_left_out(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Why?", "prompt_id": "1", "messages": chat}])
    told = head(tmp_path, "a.jsonl")
    assert (told["used"], told["kept"], told["left_out"]) == (["messages"], ["prompt_id"], ["prompt"])


def test_the_first_rows_are_shown_as_they_will_be(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [PAIR, {**PAIR, "prompt": "How?"}])
    done = command_here(tmp_path, "head", "a.jsonl", "--limit", "1")
    assert done.returncode == 0
    assert (
        "a.jsonl: read as preference (2 of the first 2 records have prompt, chosen, rejected as text or messages)"
        in done.stdout
    )
    assert "not used, kept as columns: id, images" in done.stdout
    assert "note: `images` is kept as a column, and no part of `prompt` or of a reply" in done.stdout
    assert "system: Be kind.\n  user: Why?" in done.stdout
    assert "How?" not in done.stdout


def test_fields_of_the_step_change_what_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("goal,target\nWhy?,So.\n")
    told = head(tmp_path, "a.csv", "--set", "rename={goal: prompt, target: completion}")
    assert (told["rows"][0]["prompt"], told["rows"][0]["response"]) == ([{"role": "user", "content": "Why?"}], "So.")
    assert told["used"] == ["goal", "target"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl", "--set", "format=ranks"], "format: "),
        (["a.jsonl", "--set", "form=ranked"], "form: Extra inputs are not permitted"),
        (["a.jsonl", "--set", "format"], "write FIELD=VALUE"),
        (["none.jsonl"], "none.jsonl"),
        (["none*.jsonl"], "no file has such a name"),
        (["latin.csv"], "latin.csv:1: can't be read further: it isn't UTF-8"),
        (["pointer.jsonl"], "a Git LFS pointer"),
        (["a.jsonl", "--limit", "0"], "no whole number above 0"),
    ],
)
def test_what_cant_be_is_told(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", [PAIR])
    (tmp_path / "latin.csv").write_bytes("prompt\nWo ist der Löffel?\n".encode("latin1"))
    (tmp_path / "pointer.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    done = command_here(tmp_path, "head", *arguments)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert "traceback" not in done.stderr


def test_rows_that_cant_be_read_are_named_beside_the_good_ones(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Why?"}, {"prompt": None}, {"prompt": "How?"}])
    told = head(tmp_path, "a.jsonl", code=2)
    assert [len(told["rows"]), [bad["reason"] for bad in told["bad"]]] == [2, ["`prompt` is null"]]
    assert "1 of the 3 records can't be read" in told["problems"][0]
    assert head(tmp_path, "a.jsonl", "--set", "on_bad_row=quarantine")["problems"] == []
