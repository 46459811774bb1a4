"""What loaded before new formats came loads the same: columns, texts, uids, and the format that it is taken for.

A turn of a tool, once a bad row, is the exception: it is kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.loading import load, write

BEFORE = [json.loads(line) for line in Path(__file__).with_name("loaded_before.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", BEFORE, ids=lambda case: f"{case['format']}-{'-'.join(case['records'][0])}")
def test_what_loaded_before_loads_the_same(tmp_path: Path, case: dict[str, Any]) -> None:
    rows, metrics = load(write(tmp_path / "some.jsonl", case["records"]), **case["fields"])
    assert (metrics["format"], metrics["bad_rows"], rows) == (case["format"], case["bad_rows"], case["rows"])
