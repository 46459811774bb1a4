"""The report's one file: shell, style and script of this folder around a run's content and rows.

The page asks nothing of anybody: its policy allows no request, and only its own style and script, named by their digests.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from caiflow.engine.display.terminal import escaped
from caiflow.engine.lookback.opened import Run
from caiflow.engine.lookback.report.content import content
from caiflow.engine.lookback.report.rows import Chunk, chunks, packed

SCRIPTS = ("dom.js", "charts.js", "overview.js", "browser.js", "page.js")
MOST_ROWS = 100_000
"""Rows of a step that the page holds."""


def page(run: Run, other: Run | None = None, *, limit: int = MOST_ROWS) -> str:
    """Return the report of a run as HTML, beside another where one is given; at most `limit` rows of each step."""
    said: dict[str, Any] = {"run": content(run), "other": content(other) if other else None}
    tables = [*chunks(run, limit), *(chunks(other, limit, "other") if other else ())]
    if other is not None:
        said["diff"] = _difference(other, run)
    return _filled(said, tables, run.name)


def _difference(old: Run, new: Run) -> dict[str, Any]:
    from caiflow.engine.lookback.compare import compare

    return compare(old.path, new.path).excerpts().as_json()


def _filled(said: dict[str, Any], tables: Sequence[Chunk], name: str) -> str:
    style, script = _asset("page.css"), "\n".join(map(_asset, SCRIPTS))
    parts = [_data("content", packed({**said, "tables": [table.head for table in tables]}))]
    parts += [_data(f"table-{number}", table.packed) for number, table in enumerate(tables)]
    policy = f"default-src 'none'; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'; img-src data:"
    places = {
        "POLICY": policy, "TITLE": html.escape(escaped(name)), "STYLE": style, "DATA": "\n".join(parts), "SCRIPT": script,
    }  # fmt: skip
    return re.sub("@([A-Z]+)@", lambda place: places[place[1]], _asset("page.html"))


def _data(name: str, text: str) -> str:
    return f'<script type="text/plain" id="{name}">{text}</script>'


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
