"""`caiflow why`: which part of a step's identity changed since it last ran."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from caiflow.engine.commands.parser import allowed_by, one_of, open_store, print_json, read_spec, spec_arguments

if TYPE_CHECKING:
    from caiflow.engine.lookback.compare import Change
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
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.plan.plan import make_plan, previous_texts

    spec = read_spec(args)
    one_of(args.step, spec.steps, "steps")
    store, allowed = open_store(), allowed_by(args)
    plan = make_plan(spec, store, until=args.step, allowed=allowed)
    planned = next(step for step in plan.steps if step.name == args.step)
    if args.json:
        print_json("why", _as_json(planned))
        return 0
    texts = {**previous_texts(spec, store), **Resolver(spec, store, allowed=allowed).texts()}
    _show(planned, texts)
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


def _show(step: PlannedStep, texts: Mapping[str, Any]) -> None:
    from caiflow.engine.commands.tables import changes_table, short, uncut
    from caiflow.engine.display.console import unbroken_console
    from caiflow.engine.display.report import plain_table
    from caiflow.engine.plan.changes import changes

    console = unbroken_console()
    console.print(f"{step.name}: {step.state}; {step.reason}")
    if step.components is None:
        console.print("its identity isn't known until the steps before it are done")
    elif step.previous is not None and (found := changes(step.previous, step.components)):
        console.print(uncut(changes_table(_in_words(found, texts))))
    else:
        table = plain_table("component", "value")
        for name, value in step.components.items():
            table.add_row(name, short(texts.get(value, value) if isinstance(value, str) else value))
        console.print(table)


def _in_words(found: Sequence[tuple[str, Any, Any]], texts: Mapping[str, Any]) -> Iterator[Change]:
    """Yield changes with the texts that digests stand for, and without those that stand for none."""
    from caiflow.engine.lookback.compare import ABSENT, Change, changes
    from caiflow.engine.plan.changes import describe, is_digest

    for name, old, new in found:
        if {old, new} <= {*texts, None} if isinstance(old or new, str) else False:
            yield from changes(texts.get(old, ABSENT), texts.get(new, ABSENT), name)
        elif is_digest(old) or is_digest(new):
            yield Change(name, "" if old is None else "as it was", describe((name, old, new)))
        else:
            yield Change(name, old, new)
