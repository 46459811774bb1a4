"""`caiflow why`: which part of a step's identity changed since it last ran."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from caiflow.engine.commands.parser import allowed_by, one_of, open_store, print_json, read_spec, spec_arguments

if TYPE_CHECKING:
    from caiflow.engine.plan.plan import PlannedStep

EXAMPLES = """\
  caiflow why cai.yaml sl_cai
  caiflow why cai.yaml critique --set steps.critique.few_shot=3 --json
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `why`."""
    spec_arguments(parser)
    parser.add_argument("step", metavar="STEP", help="a step of the spec")
    parser.add_argument("--json", action="store_true", help="print the components, old and new, as JSON")


def execute(args: Namespace) -> int:
    """Explain one step's state."""
    from caiflow.engine.plan.plan import make_plan

    spec = read_spec(args)
    one_of(args.step, spec.steps, "steps")
    plan = make_plan(spec, open_store(), until=args.step, allowed=allowed_by(args))
    planned = next(step for step in plan.steps if step.name == args.step)
    if args.json:
        print_json("why", _as_json(planned))
    else:
        _show(planned)
    return 0


def _as_json(step: PlannedStep) -> dict[str, object]:
    from caiflow.engine.plan.changes import changes

    found = changes(step.previous or {}, step.components or {}) if step.previous and step.components else []
    return {
        "step": step.name,
        "state": step.state,
        "reason": step.reason,
        "digest": step.digest,
        "changes": [{"component": name, "old": old, "new": new} for name, old, new in found],
        "components": step.components,
        "previous": step.previous,
    }


def _show(step: PlannedStep) -> None:
    from caiflow.engine.commands.tables import changes_table, short
    from caiflow.engine.display.console import Console
    from caiflow.engine.display.report import plain_table
    from caiflow.engine.lookback.compare import Change
    from caiflow.engine.plan.changes import changes

    console = Console()
    console.print(f"{step.name}: {step.state}; {step.reason}")
    if step.components is None:
        console.print("its identity isn't known until the steps before it are done")
    elif step.previous is not None and (found := changes(step.previous, step.components)):
        console.print(changes_table(Change(*change) for change in found))
    else:
        table = plain_table("component", "value")
        for name, value in step.components.items():
            table.add_row(name, short(value))
        console.print(table)
