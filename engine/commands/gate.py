"""`caiflow gate`: hold a run's figures to bounds, for a build that is to fail where one isn't met, and keep the evidence."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.commands.parser import as_shape, named_run, nearby, print_json
from caiflow.engine.display.terminal import say

if TYPE_CHECKING:
    from caiflow.engine.lookback.gates import Gate

EXAMPLES = """\
  caiflow gate last gates.yaml
  caiflow gate runs/cai/20250101-120000 gates.yaml --out evidence.json --json
  # gates.yaml:
  #   caiflow_gates: 1
  #   notes: 0
  #   steps:
  #     scores: {models.rl_cai.harmful.no_refusal_phrase: "<= 10%"}
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `gate`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("gates", metavar="GATES", type=Path, help="a YAML file of bounds")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="where the evidence goes (default gate.json in the run's folder)"
    )
    parser.add_argument("--json", action="store_true", help="print the evidence as JSON")


def execute(args: Namespace) -> int:
    """Hold the run to the bounds; 1 where it isn't done or a bound doesn't hold, or holds only for a part of an interval."""
    from caiflow.engine.lookback.gates import gates

    run_dir = named_run(args.run)
    held = gates(args.gates, run_dir)
    found = evidence(run_dir, args.gates, held)
    out: Path = args.out or run_dir / "gate.json"
    _keep(out, found)
    if args.json:
        print_json("gate", found)
    else:
        _show(held, found, out)
    return int(not found["passed"])


def evidence(run_dir: Path, path: Path, held: Sequence[Gate]) -> dict[str, Any]:
    """Return what was held to which bounds, with the digests by which it can be looked up again."""
    from caiflow.engine.plan.lock import LOCK
    from caiflow.engine.store.file_digests import file_digest
    from caiflow.engine.store.journal import read_run
    from caiflow.engine.version import VERSION

    run, lock = read_run(run_dir), run_dir / LOCK
    return {
        "passed": run["status"] == "done" and all(gate.verdict == "holds" for gate in held),
        "run": str(run_dir.absolute()),
        "name": run["name"],
        "status": run["status"],
        "lock_sha256": file_digest(lock) if lock.exists() else None,
        "gates": str(path),
        "gates_sha256": file_digest(path),
        "at": round(time.time(), 3),
        "version": VERSION,
        "notes": run.get("notes", []),
        "held": [{**asdict(gate), "digest": run["steps"].get(gate.step, {}).get("digest")} for gate in held],
    }


def _keep(out: Path, found: dict[str, Any]) -> None:
    import json

    from caiflow.engine.store.disk import write_atomic

    write_atomic(out, json.dumps(as_shape("gate", found), indent=1, ensure_ascii=False) + "\n")


def _show(held: Sequence[Gate], found: dict[str, Any], out: Path) -> None:
    from caiflow.engine.display.board import note_text

    marks = {"holds": "✓", "crosses": "✗ its interval crosses the bound", "fails": "✗", "missing": "✗ no value"}
    for gate in held:
        around = "" if gate.low is None or gate.high is None else f" [{gate.low:.4g}, {gate.high:.4g}]"
        n = f", n {gate.n}" if gate.n is not None else ""
        value = "" if gate.value is None else f"{gate.value:.4g}{around}{n}"
        mark, _, why = marks[gate.verdict].partition(" ")
        name = f"{gate.step} {gate.figure}".strip()
        say(f"{mark} {name}: {', '.join(filter(None, (value, why)))}; wanted {gate.bound}")
    for note in found["notes"]:
        say(f"▲ {note['step']}: {note_text(note)}")
    if found["status"] != "done":
        say(f"✗ the run is {found['status']}, not done")
    say(f"evidence: {nearby(out.absolute())}")
