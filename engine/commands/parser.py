"""Arguments that several commands share, and an argument parser that suggests what was meant. Imports nothing heavy."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from caiflow.engine.display.terminal import say
from caiflow.engine.errors import Problem, SpecError, suggest

if TYPE_CHECKING:
    from caiflow.engine.spec.load import Spec
    from caiflow.engine.spec.permissions import KeySent, Permissions
    from caiflow.engine.store.artifacts import Store


SHAPES = dict.fromkeys(
    (
        "constitution", "ctl", "diff", "doctor", "export", "figures", "gate", "gc", "head", "import", "init", "inspect",
        "merge", "model", "ops", "plan", "push", "replay", "report", "run", "runs", "specs", "tag", "try", "validate", "verify",
        "why",
    ),
    1,
)  # fmt: skip
"""What `--json` prints, by the name of its shape, with the version: raised where a field is renamed, removed or means another
thing; a further field raises nothing."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, whose width argparse itself asks of a module that takes long to import."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_terminal_width() - 2)


class Parser(argparse.ArgumentParser):
    """argparse with full option names only, examples at the end, and the nearest option for an unknown one."""

    def __init__(self, prog: str, summary: str, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{examples.rstrip()}" if examples else None,
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def parse(self, args: Sequence[str]) -> argparse.Namespace:
        """Return the parsed arguments; an unknown one ends the process with exit code 2 and a suggestion."""
        parsed, unknown = self.parse_known_args(args)
        if unknown:
            option = unknown[0].partition("=")[0]
            hint = suggest(option, [o for o in self._option_string_actions if o.startswith("--")], "options")
            self.error(f"unknown argument {unknown[0]!r}; {hint if option.startswith('-') else f'see {self.prog} --help'}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        say(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def one_of(name: str, known: Iterable[str], what: str) -> str:
    """Return `name` if it is known; `what` is the plural of what it should be.

    Raises:
        SpecError: it isn't; the message has the nearest name, or all of them.
    """
    known = list(known)
    if name not in known:
        raise SpecError(f"caiflow: {name!r} is none of the {what}", suggest(name, known, what))
    return name


def named_run(name: str) -> Path:
    """Return the folder of the run that is meant, and say on standard error which it is where `name` isn't its path.

    Raises:
        CaiflowError: no run is meant by `name`.
    """
    from caiflow.engine.lookback.history import find_run

    found = find_run(name, open_store())
    if found != Path(name):
        say(f"{name}: {nearby(found)}", file=sys.stderr)
    return found


def nearby(path: Path) -> Path:
    """Return a path as seen from the current folder, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def spec_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose a spec and change its values."""
    parser.add_argument("spec", metavar="SPEC", help="a spec file, or the name of a bundled recipe (see caiflow specs)")
    variant_arguments(parser)


def variant_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that change a spec's values."""
    parser.add_argument(
        "--set", dest="sets", metavar="PATH=VALUE", action="append", default=[],
        help="change a value, for example steps.sl_cai.learning_rate=1e-4; VALUE is read as YAML; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--profile",
        metavar="NAME",
        help="apply one of the spec's `profiles:`; `a,b` lays b over a",
    )
    allowing_arguments(parser)
    parser.add_argument("--sample", metavar="N", type=positive, help="take only N rows of every source; a full run reuses them")


def allowing_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments by which a spec may read outside its own folder, ask private networks and send keys."""
    parser.add_argument(
        "--allow-path", dest="allowed_paths", metavar="DIR", action="append", type=Path, default=[],
        help="let this folder (or file) be read outside the spec's own; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--allow-env", dest="allowed_keys", metavar="VARIABLE=HOST", action="append", type=_key_sent, default=[],
        help="let the key in an environment variable be sent to a server; in a terminal, `run` asks, and keeps the answer",
    )  # fmt: skip
    parser.add_argument(
        "--allow-host", dest="allowed_hosts", metavar="HOST", action="append", type=_host, default=[],
        help="let a server in a private network be asked, HOST or HOST:PORT; in a terminal, `run` asks, and keeps the answer",
    )  # fmt: skip


def allowed_by(args: argparse.Namespace) -> Permissions:
    """Return what the arguments allow of keys and hosts; paths are the spec's to know when it is read."""
    from caiflow.engine.spec.permissions import Permissions

    return Permissions(frozenset(args.allowed_keys), frozenset(args.allowed_hosts))


def read_spec(args: argparse.Namespace) -> Spec:
    """Load and check the spec that the arguments name.

    Raises:
        SpecError: all problems found.
    """
    from caiflow.engine.spec.load import load_spec

    spec = load_spec(find_spec(args.spec), sets=args.sets, profile=args.profile, sample=args.sample, allowed=args.allowed_paths)
    gc.enable()  # off since the start, see cli.main; work on a spec may be long
    return spec


def find_spec(name: str) -> Path:
    """Return the file of a spec: a path, or a bundled recipe's name where no such file exists.

    Raises:
        SpecError: there is neither.
    """
    path = Path(name)
    if path.exists() and not (path.is_dir() and name in recipes()):  # such a folder is what `init` made
        return path
    bundled = recipes()
    if name in bundled:
        return bundled[name]
    hint = suggest(name, [*map(str, Path().glob("*.y*ml")), *bundled], "specs here and bundled recipes")
    raise SpecError((Problem(name, 1, 1, "", "no such file", hint),))


def recipes() -> dict[str, Path]:
    """Return the bundled recipes by name."""
    folder = Path(__file__).parents[2] / "specs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def open_store() -> Store:
    """Return the store at $CAIFLOW_HOME (default ~/.cache/caiflow)."""
    from caiflow.engine.store.artifacts import Store

    return Store()


def print_json(shape: str, value: Mapping[str, Any]) -> None:
    """Print what a command found as indented JSON, in the shape that `shapes` declares under this name."""
    _print(as_shape(shape, value))


def print_schema(schema: Mapping[str, Any]) -> None:
    """Print a JSON Schema, or a part of one: JSON whose shape is the draft's."""
    _print(schema)


def as_shape(shape: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value under the name and version of its shape."""
    return {"shape": f"{shape}/{SHAPES[shape]}", **value}


def _print(value: Any) -> None:
    import json

    say(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def positive(text: str) -> int:
    """Return a whole number above 0 of an argument."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def from_zero(text: str) -> int:
    """Return a whole number of an argument that may be 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def port(text: str) -> int:
    """Return a port of an argument; 0 has the system choose one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, 0 to 65535")
    return int(text)


def _key_sent(text: str) -> KeySent:
    from caiflow.engine.plan.consent import parse_key_sent

    try:
        return parse_key_sent(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _host(text: str) -> str:
    from caiflow.engine.plan.consent import parse_host

    try:
        return parse_host(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _terminal_width() -> int:
    if os.environ.get("COLUMNS", "").isdigit():
        return max(40, int(os.environ["COLUMNS"]))
    try:
        return max(40, os.get_terminal_size().columns)
    except OSError:
        return 80
