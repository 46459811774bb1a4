"""`caiflow completion`: the script by which a shell completes commands and options, written by shtab from the real parsers."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib.util import find_spec

from caiflow.engine.display.terminal import say
from caiflow.engine.errors import CaiflowError

EXAMPLES = """\
  caiflow completion bash > ~/.local/share/bash-completion/completions/caiflow
  caiflow completion zsh > ~/.zfunc/_caiflow
  caiflow completion tcsh > ~/.caiflow.tcsh
"""
SHELLS = ("bash", "zsh", "tcsh")


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `completion`."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")


def execute(args: Namespace) -> int:
    """Print the script; the shell needs shtab no more once it has it."""
    from caiflow.engine.machine import pip_command

    if not find_spec("shtab"):
        raise CaiflowError("completion: shtab, which writes the script, isn't installed", pip_command("completion"))
    import shtab

    say(shtab.complete(whole_parser(), args.shell))
    return 0


def whole_parser() -> ArgumentParser:
    """Return one parser with every command's own below it; files are completed where a file is wanted."""
    import shtab

    from caiflow.engine.commands.every import COMMANDS, command_parser

    whole = ArgumentParser("caiflow")
    commands = whole.add_subparsers(dest="command")
    for name, summary in COMMANDS.items():
        own = command_parser(name)
        for action in own._actions:
            if action.dest in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        commands.add_parser(name, help=summary.replace("`", "'"), parents=[own], add_help=False)
    return whole


FILES = frozenset({"spec", "specs", "source", "gates", "dir", "out", "locked", "allowed_paths", "run"})
"""Arguments that are files or folders, or may be."""
