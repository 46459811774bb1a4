"""The command line: which commands there are, how errors reach the user, and the exit code.

Each command is a module of `caiflow.engine.commands` with `arguments(parser)` and `execute(args)`; only the one that was asked
for is imported. This module never works on a spec itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from caiflow.engine.display.terminal import escaped, say

if TYPE_CHECKING:
    from types import ModuleType

    from caiflow.engine.commands.parser import Parser

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; a run failed (what was done is kept); the spec or command line is wrong; Ctrl-C."""

GROUPS: dict[str, dict[str, str]] = {
    "begin": {
        "specs": "list the bundled recipes",
        "init": "copy a bundled recipe, or one from the hub, to a folder",
        "doctor": "check this machine: Python, torch, vLLM, GPUs, Ray, the store",
    },
    "work": {
        "inspect": "say what a spec may read, ask and run, before you run one of someone else's",
        "head": "show what `load` makes of a file: its format, the columns used, the first rows",
        "validate": "say everything that is wrong with specs, with file, line and column",
        "try": "send one prompt through a step and those before it, and show what each model saw",
        "plan": "say what a run would do, step by step, and why",
        "run": "validate, plan and run a spec; what was done before isn't done again",
        "why": "say which part of a step's identity changed since it last ran",
    },
    "look back": {
        "runs": "list the runs of this machine's store",
        "show": "show a run, or page through the rows of one of its steps",
        "report": "write a run, or two side by side, as one HTML file that opens anywhere",
        "gate": "hold a run's figures to bounds and keep the evidence; 1 where one isn't met",
        "diff": "compare two runs: settings, texts, judgements, metrics",
        "verify": "hash a run's artifacts again and compare them with its lock",
        "export": "make a folder from which another person can repeat a run",
        "push": "put what a step made on the hub, with its card, its figures and the recipe",
        "gc": "remove what no kept run needs from the store",
    },
    "reference": {
        "ops": "list the operators, or the parameters of one",
        "schema": "print the JSON Schema of specs, installed plugins included",
        "constitution": "show, convert or check a constitution",
        "serve": "serve a run's model at an OpenAI-compatible endpoint",
    },
}
KEYWORDS = {"try": "trying"}
"""Commands that no module may be named after, and their modules."""
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}

EXAMPLES = """\
examples:
  caiflow init quickstart demo && cd demo
  caiflow run quickstart.yaml
  caiflow run quickstart.yaml --sample 20 --set steps.rl_cai.learning_rate=1e-4
  caiflow show last clean --limit 5

Exit codes: 0 done, 1 a run failed, 2 the spec or the command line is wrong, 130 interrupted.
The store is $CAIFLOW_HOME (default ~/.cache/caiflow)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; an error never shows a traceback unless `--traceback` asks for it."""
    from caiflow.engine.commands import startup

    startup.begin()
    from caiflow.engine.errors import CaiflowError, SpecError

    given = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(given)
        sys.stdout.flush()
        return code
    except SpecError as error:
        return _say(str(error), WRONG, given)
    except CaiflowError as error:
        return _say(f"caiflow: {error}", FAILED, given)
    except KeyboardInterrupt:
        return _say(_interrupted(given), INTERRUPTED, given)
    except BrokenPipeError:
        sys.stderr.close()
        return DONE
    except Exception as error:
        return _crashed(error, given)
    finally:
        startup.end()


def _dispatch(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        if given[1:] and given[0] == "help":
            return _dispatch([given[1], "--help"])
        say(overview())
        return DONE if given else WRONG
    if given[0] in ("-V", "--version", "version"):
        from caiflow.engine.version import VERSION

        say(f"caiflow {VERSION}")
        return DONE
    name = given[0]
    if name not in COMMANDS:
        from caiflow.engine.errors import suggest

        return _say(f"caiflow: no command {name!r}; {suggest(name, COMMANDS, 'commands')}", WRONG, given)
    code: int = _module(name).execute(command_parser(name).parse(given[1:]))
    return code


def _module(name: str) -> ModuleType:
    return import_module(f"caiflow.engine.commands.{KEYWORDS.get(name, name)}")


def command_parser(name: str) -> Parser:
    """Return the argument parser of a command."""
    from caiflow.engine.commands.parser import Parser

    module = _module(name)
    parser = Parser(f"caiflow {name}", COMMANDS[name], module.EXAMPLES)
    module.arguments(parser)
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    return parser


def overview() -> str:
    """Return what `caiflow --help` prints."""
    lines = ["usage: caiflow COMMAND ...", "", "Constitutional AI from one YAML file."]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<13} {summary}" for name, summary in commands.items())]
    return "\n".join([*lines, "", "caiflow COMMAND --help says more about each.", "", EXAMPLES])


def _say(message: str, code: int, given: Sequence[str]) -> int:
    say(message, file=sys.stderr)
    if "--traceback" in given and sys.exc_info()[0] is not None:
        import traceback

        say(traceback.format_exc(), end="", file=sys.stderr)
    return code


def _interrupted(given: Sequence[str]) -> str:
    """Return what to say where Ctrl-C ended a command; a run goes on by the same command."""
    if given[:1] != ["run"]:
        return "\ncaiflow: interrupted"
    import shlex

    from caiflow.engine.store.checkpoints import KEPT

    return f"\ninterrupted; {KEPT}. To go on: {shlex.join(['caiflow', *given])}"


def _crashed(error: Exception, given: Sequence[str]) -> int:
    """Keep the traceback of an error nobody foresaw in a file, and say so in two lines."""
    import os
    import tempfile
    import traceback

    handle, path = tempfile.mkstemp(prefix="caiflow-error-", suffix=".log", text=True)
    with os.fdopen(handle, "w", encoding="utf-8") as log:
        log.write(escaped(f"caiflow {' '.join(given)}\n{traceback.format_exc()}"))
    text = " ".join(str(error).split())[:500]
    return _say(f"caiflow: {type(error).__name__}: {text}\nthe traceback is in {path} (or add --traceback)", FAILED, given)


if __name__ == "__main__":
    sys.exit(main())
