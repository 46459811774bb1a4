"""`caiflow head`: what `load` makes of a file, before there is a spec: its format, the columns used, the first rows."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from caiflow.engine.commands.parser import positive, print_json
from caiflow.engine.display.terminal import say
from caiflow.engine.errors import SpecError, joined, refusal

EXAMPLES = """\
  caiflow head pairs.jsonl
  caiflow head prompts.csv --set "rename={goal: prompt}" --limit 1
  caiflow head ranked.json --set take=all --json
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `head`."""
    parser.add_argument(
        "source", metavar="FILE", help="what `source` of a `load` step would be: a file, a pattern, a hub data set"
    )
    parser.add_argument(
        "--set", dest="sets", metavar="FIELD=VALUE", action="append", default=[],
        help="a further field of that step, for example format=ranked; VALUE is read as YAML; may be repeated",
    )  # fmt: skip
    parser.add_argument("--limit", metavar="N", type=positive, default=3, help="rows to show (default 3)")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def execute(args: Namespace) -> int:
    """Show what the step would load; 2 where it would be refused."""
    step = _step(args.source, args.sets)
    wrong = [joined(found.message, found.hint) for found in step.check()]
    try:
        look = step.look(args.limit)
    except (ValueError, OSError) as error:
        told = f"{args.source}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise SpecError("\n".join(wrong or [told])) from error
    if args.json:
        print_json("head", {**look._asdict(), "problems": wrong})
    else:
        _show(args.source, look)
        for problem in wrong:
            say(f"caiflow head: {problem}", file=sys.stderr)
    return 2 if wrong or not look.rows else 0


def _step(source: str, sets: Sequence[str]) -> Any:
    """Return the step that loads a source, with its fields as they are given.

    Raises:
        SpecError: a field that `load` doesn't have, or a value that it can't take.
    """
    import yaml
    from pydantic import ValidationError

    from caiflow.engine import registry
    from caiflow.engine.operator import StepContext

    fields: dict[str, Any] = {"source": source}
    try:
        for text in sets:
            name, sign, value = text.partition("=")
            if not sign:
                raise SpecError(f"--set {text}: no value", "write FIELD=VALUE, such as format=ranked")
            fields[name] = yaml.safe_load(value)
        load = registry.operator("load")
        return load(load.params_type(**fields), StepContext(base_dir=Path(os.getcwd())))
    except yaml.YAMLError as error:
        raise SpecError(f"--set: not YAML: {error}") from None
    except ValidationError as error:
        raise SpecError("\n".join(_refused(error.errors()))) from None


def _refused(errors: Iterable[Any]) -> Iterable[str]:
    for error in errors:
        yield joined(f"{'.'.join(map(str, error['loc']))}: {refusal(error)[0]}", refusal(error)[1])


def _show(source: str, look: Any) -> None:
    from caiflow.engine.commands.tables import row_text
    from caiflow.engine.display.console import Console

    say(f"{source}: read as {look.format} ({look.because})")
    say(f"used: {', '.join(look.used) or 'none'}")
    say(f"not used, kept as columns: {', '.join(look.kept) or 'none'}")
    if look.left_out:
        say(f"not used, left out: {', '.join(look.left_out)}")
    for note in look.notes:
        say(f"note: {note}")
    for bad in look.bad:
        say(f"bad: {bad['place']}: {bad['reason']}")
    console = Console()
    for row in look.rows:
        console.print(row_text(row), end="")
