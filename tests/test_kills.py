"""Kills of the quickstart, at moments and of victims that the seed decides; then it must be as if nothing happened.

The long version: `python tests/test_kills.py --kills 200`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from support.kills import disturb, ledger_records, leftovers, rows_by_step, start

QUICKSTART = Path(str(files("caiflow.specs"))) / "quickstart.yaml"


def undisturbed(base: Path) -> Path:
    """Run the quickstart in peace and return the run's folder."""
    run = start(QUICKSTART, base / "calm", base / "calm-home")
    assert run.wait(timeout=600) == 0, (base / "calm" / "console.txt").read_text()
    assert leftovers(run.pid) == []
    return base / "calm"


def differences(calm: Path, wild: Path) -> dict[str, str]:
    """Return, by step, how the rows of two runs differ; empty where they don't."""
    found = {}
    before, after = rows_by_step(calm), rows_by_step(wild)
    assert before.keys() == after.keys()
    for step, rows in before.items():
        uids = [row["uid"] for row in rows], [row["uid"] for row in after[step]]
        changed = sum(not same(one, other) for one, other in zip(rows, after[step], strict=False))
        if uids[0] != uids[1]:
            found[step] = f"other uids: {len(set(uids[0]) ^ set(uids[1]))} of {len(uids[0])}"
        elif changed:
            found[step] = f"{changed} of {len(rows)} rows"
    return found


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal, floats to 1e-4: what shared its batch shows in a log-probability's last bits."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=1e-4)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def repeated_calls(home: Path) -> int:
    """Return how many answers were paid for twice."""
    records = list(ledger_records(home))
    return len(records) - len(set(records))


def scores(run: Path) -> Any:
    return json.loads((run / "steps" / "scores" / "metrics.json").read_text())["models"]


@pytest.mark.kill
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [10, pytest.param(25, marks=pytest.mark.campaign)])
def test_kills_leave_no_trace(tmp_path: Path, kills: int) -> None:
    calm = undisturbed(tmp_path)
    wild, home = tmp_path / "wild", tmp_path / "wild-home"
    harvest = disturb(QUICKSTART, wild, home, kills=kills, span_s=12.0, seed=20, budget_s=1500)
    assert harvest.kills.total() == kills
    assert differences(calm, wild) == {}
    assert scores(calm) == scores(wild)
    assert repeated_calls(home) == 0


REDRAWN = """
caiflow: 1
name: redrawn
models: {base: {source: tiny, engine_args: {max_num_seqs: 2}}}
steps:
  prompts: {op: load, source: "tiny:red_team_train.jsonl", format: hh, limit: 48}
  answers:
    op: generate
    input: prompts
    model: base
    sampling: {temperature: 1, max_tokens: 28}
    accept: [truncated]
    tries: 4
    on_reject: keep
    samples: 4
    samples_as: rows
  talks:
    op: converse
    input: prompts
    model: base
    turns: 2
    end_at: [empty]
    sampling: {temperature: 1, max_tokens: 28}
"""


@pytest.mark.kill
@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.timeout(1500)
def test_a_kill_while_answers_are_drawn_again_pays_for_no_try_twice(tmp_path: Path) -> None:
    spec, calm, wild, home = tmp_path / "spec.yaml", tmp_path / "calm", tmp_path / "wild", tmp_path / "home"
    spec.write_text(REDRAWN)
    assert start(spec, calm, tmp_path / "calm-home").wait(timeout=300) == 0, (calm / "console.txt").read_text()
    assert len({row["draws"] for row in rows_by_step(calm)["answers"]}) > 2  # taken at once, later, and never
    paid = len(list(ledger_records(tmp_path / "calm-home")))
    driver = start(spec, wild, home)
    until = time.monotonic() + 300  # an engine may take minutes to begin on a busy machine
    while len(list(ledger_records(home))) < 0.3 * paid and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    driver.kill()
    driver.wait(timeout=60)
    assert 0 < len(list(ledger_records(home))) < paid
    assert start(spec, wild, home).wait(timeout=300) == 0, (wild / "console.txt").read_text()
    assert differences(calm, wild) == {}
    assert len(list(ledger_records(home))) == paid
    assert repeated_calls(home) == 0


def main() -> None:
    """Kill as often as asked and print what was found."""
    parser = argparse.ArgumentParser(description="Kill the quickstart again and again; compare the end with a run in peace.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--span", type=float, default=12.0, help="longest time between two kills, seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", type=Path, required=True, help="an empty folder to work in")
    options = parser.parse_args()
    calm = undisturbed(options.dir)
    kills, done, round_number = options.kills, 0, 0
    while done < kills:
        round_number += 1
        wild, home = options.dir / f"wild{round_number}", options.dir / f"home{round_number}"
        some = min(25, kills - done)
        harvest = disturb(
            QUICKSTART, wild, home, kills=some, span_s=options.span, seed=options.seed + round_number, budget_s=3600
        )
        done += harvest.kills.total()
        found = {"differences": differences(calm, wild), "same_scores": scores(calm) == scores(wild)}
        found |= {"repeated_calls": repeated_calls(home), "kills": dict(harvest.kills), "runs": harvest.runs}
        print(json.dumps({"round": round_number, "seconds": round(harvest.seconds), **found}), flush=True)


if __name__ == "__main__":
    main()
