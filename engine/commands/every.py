"""Which commands there are, with a line on each; each is a module beside this with `arguments(parser)` and `execute(args)`.

Only the one that is asked for is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from caiflow.engine.commands.parser import Parser

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
        "submit": "hand a run over to a Ray cluster as a job, and follow it; or print it for Kubernetes",
        "ctl": "pause, resume, or hold to other limits a run that goes on",
        "why": "say which part of a step's identity changed since it last ran",
    },
    "look back": {
        "runs": "list the runs of this machine's store",
        "show": "show a run, or page through the rows of one of its steps",
        "report": "write a run, or two side by side, as one HTML file that opens anywhere",
        "tag": "add tags and a note to a run, or take them away",
        "gate": "hold a run's figures to bounds and keep the evidence; 1 where one isn't met",
        "view": "show a run's report in a browser on this machine, and follow it while it goes on",
        "diff": "compare two runs: settings, texts, judgements, metrics",
        "verify": "hash a run's artifacts again and compare them with its lock",
        "replay": "ask random rows again, and say whether the models still answer as they did",
        "export": "make a folder from which another person can repeat a run",
        "import": "take a batch API's answers, as `export --as batch` asked for them, for the next run",
        "merge": "fold a step's adapter into its model's weights, as a folder",
        "push": "put what a step made on the hub, with its card, its figures and the recipe",
        "gc": "remove what no kept run needs from the store",
    },
    "reference": {
        "ops": "list the operators, or the parameters of one",
        "schema": "print the JSON Schema of specs, installed plugins included",
        "constitution": "show, convert or check a constitution",
        "serve": "serve a run's model at an OpenAI-compatible endpoint",
        "completion": "print the script by which a shell completes commands and options",
    },
}
KEYWORDS = {"try": "trying", "import": "importing"}
"""Commands that no module may be named after, and their modules."""
COMMANDS = {name: summary for group in GROUPS.values() for name, summary in group.items()}


def module(name: str) -> ModuleType:
    """Return a command's module."""
    return import_module(f"caiflow.engine.commands.{KEYWORDS.get(name, name)}")


def command_parser(name: str) -> Parser:
    """Return the argument parser of a command."""
    from caiflow.engine.commands.parser import Parser

    own = module(name)
    parser = Parser(f"caiflow {name}", COMMANDS[name], own.EXAMPLES)
    own.arguments(parser)
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    return parser
