"""How little a command's start imports."""

import subprocess
import sys
from pathlib import Path

SPEC = Path(__file__).parents[2] / "specs" / "quickstart.yaml"
SPARED = ("importlib.metadata", "email", "zipfile", "socket", "asyncio", "difflib", "shutil", "numpy", "polars", "pyarrow")
RUN_ONLY = (
    *("mixing.mixer", "filtering.sieve", "judging.preferences", "judging.phrases", "evaluation.measuring"),
    *("measures.effects", "formats.hub", "formats.likeness"),
)
"""Modules of the operators that a run needs, and a check doesn't."""


def printed(*lines: str) -> str:
    """Return the last line that a program prints."""
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_to_check_a_spec_only_what_checks_it_is_imported() -> None:
    spared = (*SPARED, *(f"caiflow.operators.{name}" for name in RUN_ONLY))
    assert (
        printed(
            "import sys",
            "from caiflow.engine.cli import main",
            f"assert main(['validate', {str(SPEC)!r}]) == 0",
            f"print([name for name in {spared} if name in sys.modules])",
        )
        == "[]"
    )


def test_other_names_of_the_module_that_finds_plugins_are_still_there() -> None:
    assert (
        printed(
            "from caiflow.engine.commands import startup",
            "startup.begin()",
            "import pydantic.plugin",
            "from pydantic.plugin._loader import PYDANTIC_ENTRY_POINT_GROUP as group, get_plugins",
            "print(group, list(get_plugins()))",
        )
        == "pydantic []"
    )


def test_models_are_checked_as_ever_after_a_quick_start() -> None:
    assert (
        printed(
            "from caiflow.engine.commands import startup",
            "startup.begin()",
            "from pydantic import ValidationError",
            "from caiflow.engine.operator import Resources",
            "try: Resources(workers=0)",
            "except ValidationError as error: print(error.errors()[0]['loc'])",
        )
        == "('workers',)"
    )
