"""`caiflow init`: a recipe copied to a folder, with what it needs: a bundled one, or that of a repository on the hub."""

from __future__ import annotations

import re
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from caiflow.engine.commands.parser import one_of, print_json, recipes
from caiflow.engine.display.terminal import say
from caiflow.engine.errors import CaiflowError

EXAMPLES = """\
  caiflow init                       # quickstart, into ./quickstart
  caiflow init paper my-run
  cd my-run && caiflow run paper.yaml
  caiflow init hub:me/kind-llama again            # what `caiflow push` left there
  caiflow init hub:datasets/me/kind-pairs@main again
"""
SCHEMA = "caiflow.schema.json"


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `init`."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?",
        default="quickstart",
        help="a bundled recipe (default quickstart), or hub:OWNER/REPO",
    )
    parser.add_argument("dir", metavar="DIR", nargs="?", type=Path, help="folder to make (default: the recipe's name)")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def execute(args: Namespace) -> int:
    """Copy the recipe; refuses to overwrite."""
    if args.recipe.startswith("hub:"):
        return _from_hub(args)
    known = recipes()
    recipe = known[one_of(args.recipe, known, "bundled recipes")]
    target: Path = args.dir or Path(args.recipe)
    files = needed_files(recipe)
    present = [path.name for path in files if (target / path.relative_to(recipe.parent)).exists()]
    if present:
        raise CaiflowError(f"{target}: {', '.join(present)} would be overwritten", "name another folder")
    for path in files:
        _copy(path, target / path.relative_to(recipe.parent))
    _write_schema(target)
    written = [str(path.relative_to(recipe.parent)) for path in files]
    if args.json:
        print_json("init", {"folder": str(target), "spec": recipe.name, "files": [*written, SCHEMA]})
        return 0
    say(f"wrote {', '.join(str(target / path) for path in written)}")
    say(f"next: cd {target} && caiflow run {recipe.name}")
    return 0


def _from_hub(args: Namespace) -> int:
    """Fetch the recipe of a repository; a stranger's is to be looked at before it runs."""
    from caiflow.engine.lookback.hub import fetch_recipe
    from caiflow.engine.store.file_digests import folder_files

    target: Path = args.dir or Path(args.recipe.partition("@")[0].rpartition("/")[2])
    if target.exists() and any(target.iterdir()):
        raise CaiflowError(f"{target}: not empty", "name another folder")
    commit = fetch_recipe(args.recipe, target)
    _write_schema(target)
    files = folder_files(target)
    if args.json:
        print_json("init", {"folder": str(target), "spec": "spec.yaml", "files": files})
        return 0
    say(f"wrote {target}: {', '.join(files)} ({args.recipe} at {commit[:12]})")
    say(f"next: cd {target} && caiflow inspect spec.yaml && caiflow run spec.yaml --locked")
    return 0


def _write_schema(target: Path) -> None:
    from caiflow.engine.spec import schema

    (target / SCHEMA).write_text(schema.text(schema.spec_schema()), encoding="utf-8")


def needed_files(recipe: Path) -> list[Path]:
    """Return a recipe and the files beside it that it leads to: specs it extends, data, constitutions, templates."""
    import yaml

    found, waiting = [recipe], [recipe]
    while waiting:
        raw = yaml.safe_load(waiting.pop().read_text(encoding="utf-8"))
        beside = [path for text in _texts(raw) if (path := _file_beside(recipe.parent, text)) and path not in found]
        found += beside
        waiting += [path for path in beside if path.suffix in (".yaml", ".yml")]
    return found


def _file_beside(folder: Path, text: str) -> Path | None:
    if "\n" in text or len(text) > 200:
        return None
    path = folder / text
    return path if path.is_file() and path.resolve().is_relative_to(folder.resolve()) else None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _copy(source: Path, target: Path) -> None:
    """Copy a file; a spec's first line is made to name the schema beside it, for editors."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix in (".yaml", ".yml"):
        text = source.read_text(encoding="utf-8")
        target.write_text(re.sub(r"(\$schema=)\S+", rf"\g<1>{SCHEMA}", text, count=1), encoding="utf-8")
    else:
        shutil.copy2(source, target)
