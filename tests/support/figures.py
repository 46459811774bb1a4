"""What trials of clusters measured, beside what is to be reached: a line for each of the things that are tried.

A trial notes its figures through the fixture `figure`; they travel with its report from whichever process it ran in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MARK = "figure of a cluster"
"""The name of the reports' property that holds one: the row, and what was measured."""
ROWS: Mapping[str, tuple[str, str]] = {
    "other store": ("the store isn't shared by one node", "refused with the node's name in under 5 s"),
    "late node": ("a node that comes while a run goes on and isn't fit", "named within seconds, what is on it begun elsewhere"),
    "dead replica": ("1 of 2 replicas dead for good", "0 requests failed"),
    "too large": ("an engine wants more GPUs than a node has", "refused within 5 s, before the first step"),
    "busy": ("another job, or what is left, holds all GPUs", "said within 30 s, by whom"),
    "in turns": ("three one-GPU models in a chain on 2 GPUs", "they take turns, or the plan refuses"),
    "lost worker": ("the process of a worker lost", "0 calls asked twice"),
    "lost engine": ("the node of an engine lost, then one frozen", "0 requests failed, none held for 15 s"),
    "leaving": ("a node with an engine and a worker that is to leave", "0 requests failed or asked twice, no try used up"),
    "no GPU left": ("GPU node lost, none free", "said, the survivors go on"),
    "training": ("a training's node lost, frozen, or to leave", "next step in 20 s, at most one try"),
    "phases": ("a node lost or frozen in each phase of a run", "the rows of an undisturbed run"),
    "capped": ("`max_calls: 100` with 4 replicas and 3 shards", "100 calls"),
    "equal runs": ("two equal runs at once", "under 5% of calls paid for twice"),
    "threads": ("threads of a worker", "at most half of a node's cores"),
    "start": ("Ray's start times out", "tried again, said"),
    "missing": ("a package missing on a node", "the module and the node named"),
    "shards": ("one flow in shards", "the same bytes, 4 at least 3.4 times as fast as one"),
}
"""What is tried, and what is to be reached."""


def found(properties: Iterable[Iterable[tuple[str, Any]]]) -> dict[str, list[str]]:
    """Return by row what the reports' properties tell, each figure once."""
    measured: dict[str, list[str]] = {}
    for name, value in (one for all_of_one in properties for one in all_of_one):
        if name == MARK and value[1] not in measured.setdefault(value[0], []):
            measured[value[0]].append(value[1])
    return measured


def lines(measured: Mapping[str, list[str]]) -> list[str]:
    """Return the table: what was tried, what was measured, what is to be reached."""
    told = {row: "; ".join(measured.get(row, ["not tried here"])) for row in ROWS}
    return [f"{tried}: {told[row]} (to reach: {reach})" for row, (tried, reach) in ROWS.items()]


def keep(measured: Mapping[str, list[str]], file: Path) -> None:
    """Write what was measured into a file."""
    file.parent.mkdir(exist_ok=True)
    told = [{"tried": tried, "measured": measured.get(row, []), "to reach": reach} for row, (tried, reach) in ROWS.items()]
    file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
