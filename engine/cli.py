"""The command line: how a command is found, how errors reach the user, and the exit code. Never works on a spec itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from caiflow.engine.commands.every import COMMANDS as COMMANDS
from caiflow.engine.commands.every import GROUPS as GROUPS
from caiflow.engine.commands.every import command_parser as command_parser
from caiflow.engine.commands.every import module
from caiflow.engine.display.terminal import escaped, say

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; a run failed (what was done is kept); the spec or command line is wrong; Ctrl-C."""

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
    code = DONE
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
    except BrokenPipeError:  # who read has seen enough, as `| head`; what the command came to stays what it is
        _write_no_more()
        return code
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
    code: int = module(name).execute(command_parser(name).parse(given[1:]))
    return code


def overview() -> str:
    """Return what `caiflow --help` prints."""
    lines = ["usage: caiflow COMMAND ...", "", "Constitutional AI from one YAML file."]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<13} {summary}" for name, summary in commands.items())]
    return "\n".join([*lines, "", "caiflow COMMAND --help says more about each.", "", EXAMPLES])


def _write_no_more() -> None:
    """Have what is left to write go nowhere: Python, which writes it at its end, would fail and end with code 120."""
    import os
    from contextlib import suppress

    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # it may be no file
            os.dup2(nowhere, stream.fileno())


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
