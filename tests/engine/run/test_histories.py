"""Histories of a store: edits, trials, runs cut off or killed, two at once, damages, cleaning and moves, in any order.

After each, a run gives the rows that a fresh store gives, asks what the plan said, and asks nothing again that is still kept.
`CAIFLOW_HISTORIES` sets how many the long test plays.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from caiflow.engine.errors import StepError
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.cleaning import collect, find_garbage
from caiflow.engine.store.ledger import Ledger
from support.forked_runs import IN_FLIGHT, ForkedRun
from support.runs_without_ray import AskedLink, carry_out, write_spec

BRIEFLY, MANY = 4, int(os.environ.get("CAIFLOW_HISTORIES", "100"))
SOME = 50
MEMORY = Path("/dev/shm")
PRINCIPLES = ("What is unkind?", "What is untrue?", "What is unclear?")
_right: dict[Any, list[dict[str, Any]]] = {}


class Histories(RuleBasedStateMachine):
    """One spec, one store, and what may befall them."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="caiflow-history-", dir=MEMORY if MEMORY.is_dir() else None))
        self.home, self.moves = self.root / "home", 0
        self.prompts, self.damaged, self.gone = 3, False, False
        self.principles = [PRINCIPLES[0], PRINCIPLES[1]]
        self.write()

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def write(self) -> None:
        self.spec = write_spec(self.root / "spec", [f"Say {n}." for n in range(self.prompts)], self.principles)

    def right(self, sample: int | None) -> list[dict[str, Any]]:
        """Return what a fresh store gives."""
        state = (self.prompts, tuple(self.principles), sample)
        if state not in _right:
            fresh = self.root / "fresh"
            _right[state], _ = carry_out(self.spec, Store(fresh), AskedLink(), sample)
            shutil.rmtree(fresh)
        return _right[state]

    def planned_calls(self, sample: int | None) -> range:
        """Return the calls that the plan allows: as many as it says, or fewer where it says that some may be there already.

        Behind an answer that was lost they may be. Where none was, a critique of it can't be there before it. What somebody
        took out of the ledger is counted, though the same rows may be there, made for another sample: their making tells.
        """
        rows, *asking = make_plan(load_spec(self.spec, sample=sample), Store(self.home)).steps[:3]
        most = sum(step.calls or 0 for step in asking)
        counted = rows.state == "cached" and not self.damaged
        least = most if counted else sum(step.calls or 0 for step in asking if not step.at_most)
        return range(0 if self.gone else least, most + 1)

    def kept(self) -> int:
        total = 0
        for folder in (self.home / "ledger").glob("*"):
            with Ledger(folder.parent, folder.name) as ledger:
                total += sum(ledger.get(key) is not None for key in ledger)
        return total

    def run(self, sample: int | None = None) -> None:
        planned, before, link = self.planned_calls(sample), self.kept(), AskedLink()
        rows, _ = carry_out(self.spec, Store(self.home), link, sample)
        assert rows == self.right(sample)
        assert len(link.answered) in planned
        assert self.kept() == before + len(link.answered)  # each call brought something that wasn't there

    @rule(principle=st.integers(0, 1), text=st.sampled_from(PRINCIPLES))
    def edit_a_principle(self, principle: int, text: str) -> None:
        self.principles[principle] = text
        self.write()

    @rule(prompts=st.integers(1, 5))
    def add_or_remove_rows(self, prompts: int) -> None:
        self.prompts = prompts
        self.write()

    @rule()
    def run_all(self) -> None:
        self.run()

    @rule(sample=st.integers(1, 3))
    def try_a_few(self, sample: int) -> None:
        self.run(sample)

    @rule(most=st.integers(0, 6))
    def be_cut_off(self, most: int) -> None:
        before, link = self.kept(), AskedLink(most)
        with suppress(StepError):  # where what is kept wasn't enough
            carry_out(self.spec, Store(self.home), link)
        assert self.kept() == before + len(link.answered)

    @rule()
    def run_twice_at_once(self) -> None:
        before, links = self.kept(), [AskedLink(), AskedLink()]
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(carry_out, self.spec, Store(self.home), link) for link in links]
            assert [run.result()[0] for run in runs] == [self.right(None)] * 2
        assert self.kept() == before + sum(len(link.answered) for link in links)

    @rule(count=st.integers(1, 2), killed=st.booleans(), answers=st.integers(0, 6), later_ms=st.integers(0, 30))
    def run_in_processes(self, count: int, killed: bool, answers: int, later_ms: int) -> None:
        """Run in a process of its own, or in two at once; the last of them may be killed at a moment."""
        before, runs = self.kept(), [ForkedRun(self.spec, self.home) for _ in range(count)]
        if killed:
            runs[-1].kill(answers, later_ms / 1000)
        rows = [run.end() for run in runs]
        whole = rows[:-1] if killed else rows
        assert whole == [self.right(None)] * len(whole)
        lost = before + sum(run.answered for run in runs) - self.kept()
        assert 0 <= lost <= (IN_FLIGHT if killed else 0)

    @rule(seed=st.integers(0, 10**6), how=st.sampled_from(["flip", "torn", "gone"]))
    def be_damaged(self, seed: int, how: str) -> None:
        rng = random.Random(seed)
        folders = [self.home / "ledger", self.home / "artifacts"] if how != "torn" else [self.home / "ledger"]
        files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
        if not files:
            return
        path, self.damaged = rng.choice(files), True
        data, before = path.read_bytes(), self.kept()
        if how == "gone":
            path.unlink()
            self.gone = True
            return
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if how == "flip" else data[: -rng.randint(1, 9)])
        assert before - self.kept() <= 1  # its record alone

    @rule()
    def be_cleaned(self) -> None:
        before = self.kept()
        store = Store(self.home)
        collect(store, find_garbage(store, grace_s=-60.0))
        assert self.kept() == before

    @rule()
    def be_moved(self) -> None:
        self.moves += 1
        if self.home.is_dir():
            self.home = self.home.rename(self.root / f"home{self.moves}")


def play(count: int) -> None:
    for played in range(0, count, SOME):
        how = settings(max_examples=min(SOME, count - played), stateful_step_count=8, suppress_health_check=list(HealthCheck))
        run_state_machine_as_test(Histories, settings=how)
        print(
            f"{min(played + SOME, count):,} histories: each ended in the right rows, nothing kept was asked again", flush=True
        )


def test_any_history_ends_in_the_right_rows() -> None:
    play(BRIEFLY)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(36000)
def test_many_histories_end_in_the_right_rows() -> None:
    play(MANY)
