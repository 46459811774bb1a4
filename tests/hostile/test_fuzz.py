"""Shipped recipes, changed at random places into what nobody would write: problems with a place, or a spec, and never more.

`CAIFLOW_FUZZ` sets how many the long test tries. A failure names the seed, from which its spec is made again.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import random
import re
import resource
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from caiflow.engine.registry import names
from support.commands import command_here
from support.source_tree import ROOT

BRIEFLY, LONG = 120, int(os.environ.get("CAIFLOW_FUZZ", "1000"))
CPU_S, MEMORY_MIB = 2.0, 300
SOME = 500
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
PLACED = re.compile(r"^fuzzed\.yaml:\d+:\d+: ")
VALUES: list[Any] = [
    None, True, -1, 0, 1.5, 10**30, float("inf"), float("nan"), "", "x", "\x1b[31mred\x07", "\u202eevil", "a" * 5000,
    "../../etc/passwd", "{{ 'a' * 10**9 }}", "{% for i in range(10**9) %}x{% endfor %}", "(a+)+$", "base", "no_such_step",
    "1e400", [], {}, [[[[]]]], {"a": {"a": {}}}, [1, None, "x"], {"min": 2, "max": 1}, {"\x1b]0;t\x07": 1}, "${HOME}", "<<",
    "!!python/object:os.system", "\ud7ff", "\xe9" * 300,
]  # fmt: skip
KEYS = [
    "op",
    "input",
    "inputs",
    "model",
    "models",
    "source",
    "sampling",
    "drop",
    "require",
    "<<",
    "",
    "\x1b[2J",
    "a b",
    "x" * 300,
]


@cache
def recipes() -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "specs").glob("*.yaml"))]


def fuzzed(seed: int) -> str:
    """Return a recipe with one to six changes: values replaced, keys renamed, entries dropped and exchanged, or a byte."""
    dice = random.Random(seed)
    spec = copy.deepcopy(dice.choice(recipes()))
    for _ in range(dice.randint(1, 6)):
        _change(spec, dice)
    text = yaml.dump(spec, Dumper=DUMPER, allow_unicode=dice.random() < 0.5, sort_keys=False)
    if dice.random() < 0.2:
        place = dice.randrange(len(text))
        text = (
            text[:place]
            + dice.choice(["\t", ":", "{", "}", "- ", "&a", "*a", "\x00", "'", "\n\n", "#", "|"])
            + text[place + 1 :]
        )
    return text


def _change(spec: Any, dice: random.Random) -> None:
    owner, key = dice.choice(list(_places(spec)))
    action = dice.randrange(6)
    if action == 0:
        owner[key] = copy.deepcopy(dice.choice(VALUES))
    elif action == 1:
        del owner[key]
    elif action == 2:
        other, place = dice.choice(list(_places(spec)))
        if isinstance(other[place], (dict, list)) or isinstance(owner, list):
            owner[key] = copy.deepcopy(other[place])
        else:
            owner[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(owner[key])
    elif action == 3 and isinstance(owner, dict):
        owner[dice.choice(KEYS)] = owner.pop(key)
    elif action == 4 and isinstance(owner, dict):
        owner[dice.choice(KEYS)] = copy.deepcopy(dice.choice(VALUES))
    elif isinstance(owner, dict) and "op" in owner:
        owner["op"] = dice.choice(names())


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each value's owner and its key there."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()):
        yield value, key
        yield from _places(inner)


def peak_mib() -> float:
    """Return the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def wrong_with(said: str, code: int, printed: str) -> str:
    """Return what is wrong with an answer of `validate`; empty where nothing is."""
    if code not in (0, 2):
        return f"exit code {code}"
    if "Traceback" in said:
        return "a traceback"
    if CONTROL.search(said):
        return "a raw control character"
    lines = [line for line in printed.splitlines() if line.startswith("fuzzed.yaml") and ": ok" not in line]
    return "" if code == 0 or (lines and all(map(PLACED.match, lines))) else "a problem without its place"


def try_specs(folder: Path, number: int, start: int) -> None:
    """Validate specs of so many seeds, each under its bounds; whatever is wrong is said of every seed, at the end."""
    longest, most = 0.0, 0.0
    answers, wrong = Counter[int](), dict[int, str]()
    for seed in range(start, start + number):
        (folder / "fuzzed.yaml").write_text(fuzzed(seed), encoding="utf-8", errors="surrogatepass")
        began, had = time.process_time(), peak_mib()
        found = command_here(folder, "validate", "fuzzed.yaml", CAIFLOW_HOME=str(folder / "home"), HF_HUB_OFFLINE="1")
        took, grown, said = time.process_time() - began, peak_mib() - had, found.stdout + found.stderr
        longest, most = max(longest, took), max(most, grown)
        answers[found.returncode] += 1
        trouble = wrong_with(said, found.returncode, found.stdout)
        if trouble or took >= CPU_S or grown >= MEMORY_MIB:
            wrong[seed] = f"{trouble}; {took:.1f} s of CPU, {grown:.0f} MiB: {said[-2000:]}"
        if seed % SOME == SOME - 1 or seed == start + number - 1:
            told = {
                "specs": seed + 1 - start,
                "by exit code": answers,
                "longest CPU s": round(longest, 2),
                "most MiB": round(most),
            }
            print(json.dumps({**told, "wrong": len(wrong)}), flush=True)
            gc.unfreeze()
            gc.collect()  # the command leaves that to the end of its process
    assert not wrong, dict(list(wrong.items())[:20])
    assert set(answers) == {0, 2}


def test_changed_recipes_are_answered_with_places(tmp_path: Path) -> None:
    try_specs(tmp_path, BRIEFLY, 0)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(36000)
def test_many_changed_recipes_are_answered_with_places(tmp_path: Path) -> None:
    try_specs(tmp_path, LONG, 1000)
