"""The page "Your data": every format is there, and its example is read as that format."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.operators.formats.parse import FORMATS
from support.loading import load
from support.pages import ROOT, blocks

PAGE = ROOT / "docs/how-to/your-data.md"
EXAMPLES = {block.noted("file"): block for block in blocks(PAGE) if block.noted("file").removesuffix(".jsonl") in FORMATS}


def test_every_format_has_an_example() -> None:
    assert {name.removesuffix(".jsonl") for name in EXAMPLES} == set(FORMATS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_read_as_its_format_from_its_two_or_three_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(EXAMPLES[name].text, encoding="utf-8")
    wanted = name.removesuffix(".jsonl")
    named = {"format": wanted} if f"--set format={wanted}" in PAGE.read_text(encoding="utf-8") else {}
    rows, metrics = load(tmp_path / name, **named)
    assert (metrics["format"], metrics["bad_rows"]) == (wanted, 0)
    assert 2 <= len(EXAMPLES[name].text.splitlines()) <= 3
    assert all(row["uid"] and (wanted == "table" or row["prompt"]) for row in rows)
