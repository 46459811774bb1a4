"""`caiflow run`: validate, plan and run a spec, show it going on, and report what came of it."""

from __future__ import annotations

import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from caiflow.engine.commands.parser import allowed_by, open_store, read_spec, spec_arguments
from caiflow.engine.display.terminal import say
from caiflow.engine.store.checkpoints import KEPT

if TYPE_CHECKING:
    from caiflow.engine.spec.load import Spec
    from caiflow.engine.spec.permissions import Permissions
    from caiflow.engine.store.journal import Event, Listener

EXAMPLES = """\
  caiflow run cai.yaml                              # what was done before isn't done again
  caiflow run cai.yaml --sample 20                  # a trial on 20 rows per source; the full run reuses it
  caiflow run cai.yaml --until clean                # up to one step
  caiflow run cai.yaml --profile cluster --address auto
  caiflow run cai.yaml --set steps.rl_cai.beta=0.2 --set seed=3
  caiflow run cai.yaml --locked                     # refuse anything that differs from caiflow.lock
  caiflow run cai.yaml --json | jq -c 'select(.event == "step_done")'
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `run`."""
    spec_arguments(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of this run (default runs/NAME/TIMESTAMP)")
    parser.add_argument("--only", metavar="STEP", help="run this step alone, from what is there")
    parser.add_argument("--until", metavar="STEP", help="run up to this step and no further")
    parser.add_argument(
        "--address", metavar="RAY", help="a Ray cluster: HOST:PORT, ray://HOST:PORT, or auto (default: this machine)"
    )
    parser.add_argument("--grow", metavar="2x8", help="the cluster's autoscaler may add so many nodes of so many GPUs each")
    parser.add_argument(
        "--locked", metavar="LOCK", nargs="?", const="", help="refuse what differs from this lock (default: that beside SPEC)"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true",
        help="let model repositories, and what `other_engine_args` names, run their own code on this machine (off)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print events as JSON lines on standard output")


def execute(args: Namespace) -> int:
    """Run the spec; 0 done, 1 a step failed, 130 interrupted."""
    spec = read_spec(args)
    allowed = allowed_by(args)
    from caiflow.engine.display.progress import display
    from caiflow.engine.display.terminal import own_output
    from caiflow.engine.run import runner
    from caiflow.engine.run.on_ray.nodes import Growth

    if sys.stdin.isatty() and sys.stderr.isatty() and not args.json:
        _ask(spec, allowed)
    out = args.out or default_out(spec)
    with own_output(), display(as_json=args.json) as listener:
        result = runner.run(
            spec,
            open_store(),
            out,
            only=args.only,
            until=args.until,
            address=args.address,
            growth=Growth.read(args.grow, args.address),
            on_event=listener if args.out else _pointed_at(out, listener),
            trust_remote_code=args.trust_remote_code,
            allowed=allowed,
            locked=_lock_path(spec, args.locked),
        )
    with suppress(BrokenPipeError):  # whoever read what is printed may have gone
        if not args.json:
            print_end(result.run_dir)
            _print_sameness(spec, result.run_dir)
            print_next(result.run_dir)
        if args.traceback:
            _print_reports(result.run_dir)
        if result.exit_code == 130:
            say(f"interrupted; {KEPT}. To go on: {again()}", file=sys.stderr)
    return result.exit_code


def _ask(spec: Spec, allowed: Permissions) -> None:
    """Ask for each key that is sent somewhere and each host in a private network; keep the answer where it is yes."""
    from caiflow.engine.plan.consent import told_of, unallowed_hosts, unallowed_keys, with_typed
    from caiflow.engine.spec.permissions import remember

    for key, name in unallowed_keys(spec.models, allowed).items():
        if _allows(f"models.{name} sends the key in {key.variable} to {key.host}"):
            remember(key)
    for host, (name, address) in unallowed_hosts(spec.models, with_typed(spec.models, spec.source, allowed)).items():
        if _allows(f"models.{name} asks {told_of(host, address)}"):
            remember(host)


def _allows(what: str) -> bool:
    say(f"{what}. Allow it, now and later? [y/N] ", end="", file=sys.stderr)
    with suppress(EOFError):  # Ctrl-D says nothing, which isn't yes
        return input().strip().lower() in ("y", "yes")
    return False


def default_out(spec: Spec) -> Path:
    """Return runs/NAME/TIMESTAMP, with a number behind where that exists already."""
    base = Path("runs") / spec.name / time.strftime("%Y%m%d-%H%M%S")
    path, n = base, 1
    while path.exists():
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path


def _pointed_at(out: Path, listener: Listener) -> Listener:
    """Return the listener that also has `latest`, beside a run's folder, lead there as soon as it begins."""
    from caiflow.engine.store.disk import point

    def listen(event: Event) -> None:
        if event["event"] == "run_started":
            point(out.with_name("latest"), Path(out.name))
        listener(event)

    return listen


def _print_reports(run_dir: Path) -> None:
    """Print the whole report of each step that failed, with the traceback where an operator raised."""
    from caiflow.engine.store.journal import read_run

    for name, step in read_run(run_dir)["steps"].items():
        log = run_dir / "logs" / f"{name}.log"
        if step["status"] == "failed" and log.exists():
            say(f"\n{name}:\n{log.read_text(encoding='utf-8')}", end="", file=sys.stderr)


def again() -> str:
    """Return the command line that goes on with this run."""
    return shlex.join(["caiflow", *sys.argv[1:]])


def print_end(run_dir: Path) -> None:
    """Print the steps of a finished run, the figures of its evaluations, and what needs attention, in full."""
    from rich.text import Text

    from caiflow.engine.display.board import duration
    from caiflow.engine.display.console import unbroken_console
    from caiflow.engine.display.report import failures, figures, notes_text, steps_table
    from caiflow.engine.lookback.history import evaluations
    from caiflow.engine.lookback.tags import said_of
    from caiflow.engine.store.journal import read_run

    console, run = unbroken_console(), read_run(run_dir)
    console.print(steps_table(run, console.width))
    for step, metrics in evaluations(run_dir):
        for table in figures(metrics, step, console.width):
            console.print()
            console.print(table)
    for n, told in enumerate([*failures(run), *notes_text(run)]):
        console.print(Text("\n" * (not n)) + told)
    style = "bold red" if run["status"] == "failed" else "yellow" if run.get("notes") or run["status"] != "done" else "green"
    said = said_of(run_dir)
    if said.tags or said.note:
        console.print(Text(f"\n{' '.join(f'#{tag}' for tag in said.tags)}  {said.note}".rstrip(), style="cyan"))
    variant = f", with {run['variant']}" if run.get("variant") else ""
    console.print(Text.assemble("\n", (run["status"], style), f" in {duration(run['seconds'] or 0)}{variant}: {run_dir}"))


def _print_sameness(spec: Spec, run_dir: Path) -> None:
    """Print what was made otherwise than by the run whose lock lies beside the spec."""
    from contextlib import suppress

    from caiflow.engine.errors import PlanError
    from caiflow.engine.plan.lock import LOCK

    if not (spec.base_dir / LOCK).is_file():
        return
    from caiflow.engine.lookback.sameness import told

    with suppress(PlanError):  # an unreadable lock was told of as it was met
        for line in told(spec.base_dir, run_dir):
            say(f"made otherwise than {LOCK} has it: {line}")


def print_next(run_dir: Path) -> None:
    """Print what to do with a run that has just ended, a command a line."""
    from caiflow.engine.store.journal import MADE, read_run

    run = read_run(run_dir)
    made = [name for name, step in run["steps"].items() if step["status"] in MADE]
    noted = next((note["step"] for note in run.get("notes", ()) if note["step"] in made), "")
    if run["status"] == "failed":
        say(f"next: {again()}    once that is mended: what was made isn't made again")
    if noted:
        say(f"next: caiflow show {run_dir} {noted}    what the notes are about")
    if made:
        say(f"next: caiflow report {run_dir}    one page with every figure and row, to look at and to hand on")


def _lock_path(spec: Spec, given: str | None) -> Path | None:
    if given is None:
        return None
    return Path(given) if given else spec.base_dir / "caiflow.lock"
