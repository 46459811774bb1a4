"""The private names of the libraries' trainers that caiflow leans on: all in one file, each there in the installed release."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from caiflow.engine.training import private
from caiflow.engine.training.loop import quiet_libraries

ROOT = Path(__file__).parents[3]
SEAM = ROOT / "engine" / "training" / "private.py"


def theirs() -> set[str]:
    """Return every private name of the libraries' trainers: of their classes, of themselves, and of what TRL's share."""
    quiet_libraries()
    from trl import DPOTrainer, GRPOTrainer, RewardTrainer, RLOOTrainer, SFTTrainer
    from trl.trainer import utils

    trainers = (DPOTrainer, GRPOTrainer, RewardTrainer, RLOOTrainer, SFTTrainer)
    classes = {
        kind for trainer in trainers for kind in trainer.__mro__ if kind.__module__.split(".")[0] in {"trl", "transformers"}
    }
    text = "".join(inspect.getsource(kind) for kind in classes)
    names = {*re.findall(r"\bself\.(_\w+)", text), *(name for kind in classes for name in vars(kind)), *vars(utils)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def private_names(path: Path) -> set[str]:
    """Return the private attributes that a file reads, sets or defines in its classes."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ClassDef):
            found |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            found |= {
                part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
            }
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def with_trainers() -> list[Path]:
    """Return the files that could touch a trainer: those that name a library of trainers or what is mixed into one."""
    files = [path for part in ("engine/training", "operators") for path in (ROOT / part).rglob("*.py") if path != SEAM]
    return [
        path for path in files if re.search(r"\b(?:trl|transformers|Quiet|Finite|Hooks)\b", path.read_text(encoding="utf-8"))
    ]


def test_no_other_file_touches_a_private_name_of_theirs() -> None:
    known = theirs()
    touched = {str(path.relative_to(ROOT)): private_names(path) & known for path in with_trainers()}
    assert {path: names for path, names in touched.items() if names} == {}


def test_each_name_is_in_the_installed_release() -> None:
    assert private_names(SEAM)
    assert private_names(SEAM) - theirs() == set()


def test_each_hook_says_why_it_is_there() -> None:
    hooks = [
        method
        for kind in vars(private).values()
        if inspect.isclass(kind) and kind.__module__ == private.__name__
        for name, method in vars(kind).items()
        if inspect.isfunction(method) and name.startswith("_")
    ]
    assert len(hooks) >= 7
    assert [hook.__name__ for hook in hooks if not hook.__doc__] == []
