"""Any file of a store flipped, cut or gone: no wrong row is ever used, and what was lost is made again, and said."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.ledger import Ledger
from support.runs_without_ray import AskedLink, carry_out, write_spec

PROMPTS = [f"Say number {n}." for n in range(12)]
PRINCIPLES = ["What is unkind?", "What is untrue?"]
MANY = int(os.environ.get("CAIFLOW_TEST_DAMAGES", "300"))


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) - 1)]  # more than the newline at its end, without which a record says the same


def kept(home: Path) -> int:
    """Return how many answers the ledgers hold."""
    total = 0
    for folder in (home / "ledger").glob("*"):
        with Ledger(folder.parent, folder.name) as ledger:
            total += sum(ledger.get(key) is not None for key in ledger)
    return total


@pytest.mark.parametrize("count", [30, pytest.param(MANY, marks=pytest.mark.soak)])
def test_no_damage_brings_a_wrong_row(tmp_path: Path, count: int, record_property: Callable[[str, object], None]) -> None:
    home, first = tmp_path / "home", AskedLink()
    spec = write_spec(tmp_path / "spec", PROMPTS, PRINCIPLES)
    right, _ = carry_out(spec, Store(home), first)
    assert len(right) == len(PROMPTS)
    files = [path.relative_to(home) for path in sorted(home.rglob("*")) if path.is_file() and path.stat().st_size]
    rng, remade, silent = random.Random(7), 0, []
    for number in range(count):
        name, how = files[number % len(files)], ("flip", "cut", "gone")[number // len(files) % 3]
        how = "flip" if how == "gone" and number % 2 else how
        damaged = tmp_path / f"damaged{number}"
        shutil.copytree(home, damaged)
        before, path = kept(home), damaged / name
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(flip(path.read_bytes(), rng) if how == "flip" else cut(path.read_bytes(), rng))
        lost, again = before - kept(damaged), AskedLink()
        rows, said = carry_out(spec, Store(damaged), again)
        where = f"{how} of {name}"
        assert rows == right, where
        assert len(again.answered) <= lost, where
        remade += bool(said)
        if name.parts[0] == "artifacts" and not said:
            silent.append(where)
        shutil.rmtree(damaged)
    assert not silent
    print(f"{count} damages of {len(files)} files: 0 wrong rows, {remade} made again and said")
    record_property("damages", count)
