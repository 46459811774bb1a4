"""Lays the site's pages in a folder: the written ones as they are, and the reference, made from the declarations.

`python docs/make_pages.py FOLDER` fills FOLDER/docs-pages and copies zensical.toml beside it. The reference of operators,
models and the spec comes from the parameter models (their fields, types, defaults and docstrings), that of commands from the
argument parsers; neither is ever written by hand nor committed, so it can't fall behind. Never builds the site itself.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caiflow.engine import cli, registry
from caiflow.engine.commands.parser import SHAPES
from caiflow.engine.commands.shapes.every import OUTPUTS
from caiflow.engine.commands.tables import EVERYWHERE, type_text
from caiflow.engine.spec.schema import generate

HERE = Path(__file__).parent
Schema = Mapping[str, Any]

TABLE_HEAD = "| field | type | default | meaning |\n| --- | --- | --- | --- |\n"
SPEED_NOTE = (
    "A ◇ marks fields that affect only speed, cost or messages: they are no part of a step's "
    "[identity](../ideas/identity.md), so changing one never makes work run again.\n"
)
SERVED_NOTE = "The one exception is `base_url`: a served model is known by its address and name.\n"
JSON_HEAD = """\
# JSON

Every command but `serve`, `view` and `completion` prints JSON with `--json`, one object whose `shape` has its name and version.
A version is raised where a field is renamed, removed or means another thing; a further field raises none, so read those that
you know and pass over the others. Exit codes are the same as without it.

Two commands print lines of JSON instead: `caiflow run --json` the run's events as they happen (`t`, `event`, and the fields of
each, as in `events.jsonl`), and `caiflow show RUN STEP --json` a row a line, with the row's own columns. `caiflow schema` and
`caiflow ops OP --json` print JSON Schema.
"""
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def main(target: Path) -> None:
    """Lay the pages in the folder `target` anew."""
    pages = target / "docs-pages"
    shutil.rmtree(pages, ignore_errors=True)
    for page in HERE.rglob("*.md"):
        destination = pages / page.relative_to(HERE)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, destination)
    shutil.copyfile(HERE / "zensical.toml", target / "zensical.toml")
    reference = pages / "reference"
    reference.mkdir()
    for name, text in reference_pages().items():
        (reference / name).write_text(text, encoding="utf-8")


def reference_pages() -> dict[str, str]:
    """Return the generated pages by file name."""
    schema = generate(tuple(registry.BUILT_IN))
    return {
        "commands.md": commands_page(),
        "spec.md": spec_page(schema),
        "models.md": models_page(schema),
        "operators.md": operators_page(schema),
        "json.md": json_page(),
    }


def commands_page() -> str:
    """Return the page of all commands: what each prints for `--help`."""
    os.environ["COLUMNS"] = "102"
    text = "# Commands\n\nWhat `caiflow COMMAND --help` prints. Exit codes: 0 done; 1 a run failed, and what was done is kept; "
    text += "2 the spec or the command line is wrong; 130 interrupted.\n"
    for title, group in cli.GROUPS.items():
        text += f"\n## {title.capitalize()}\n"
        for name in group:
            text += f"\n### caiflow {name}\n\n```text\n{cli.command_parser(name).format_help().rstrip()}\n```\n"
    return text


def spec_page(schema: Schema) -> str:
    """Return the page of a spec's top-level keys."""
    text = "# The spec\n\n" + schema["description"] + " `caiflow schema` prints the same as JSON Schema, with the operators of "
    text += "installed plugins; `caiflow init` puts it beside a recipe, where editors find it.\n\n" + TABLE_HEAD
    for name, field in schema["properties"].items():
        inner = {**field, "additionalProperties": True} if name in ("models", "steps") else field
        text += "".join(_rows(name, inner, schema["$defs"], name in schema["required"]))
    return (
        text
        + "\nThe entries of `models` are on [their own page](models.md), those of `steps` under [operators](operators.md).\n"
    )


def models_page(schema: Schema) -> str:
    """Return the page of an entry of `models`."""
    entry = schema["$defs"]["ModelEntry"]
    text = f"# Models\n\n{entry['description']} Equal entries share one engine.\n\n{SPEED_NOTE}{SERVED_NOTE}\n{TABLE_HEAD}"
    return text + "".join(_fields(entry, schema["$defs"]))


def operators_page(schema: Schema) -> str:
    """Return the page of all built-in operators and their parameters."""
    text = "# Operators\n\nWhat stands behind `op:`. Fields in bold must be given; `caiflow ops NAME` prints the "
    text += f"same in a terminal, also for operators of your own.\n\n{SPEED_NOTE}"
    for name in registry.BUILT_IN:
        found = schema["$defs"][f"op:{name}"]
        text += f"\n## {name}\n\n{found['description']}\n\nGives {found['x-kind']}.\n\n{TABLE_HEAD}"
        text += "".join(_fields(found, schema["$defs"]))
    return text


def json_page() -> str:
    """Return the page of what commands print with `--json`."""
    text = JSON_HEAD
    for name, shape in OUTPUTS.items():
        found = shape.model_json_schema()
        text += f"\n## {name}/{SHAPES[name]}\n\n{found['description']}\n\n{TABLE_HEAD}"
        text += "".join(_fields(found, found.get("$defs", {})))
    return text


def _fields(group: Schema, definitions: Schema) -> Iterator[str]:
    required = group.get("required", ())
    for name in sorted(group["properties"], key=lambda name: (name in EVERYWHERE, name not in required)):
        if name != "op":
            yield from _rows(name, group["properties"][name], definitions, name in required)


def _rows(path: str, field: Schema, definitions: Schema, required: bool) -> Iterator[str]:
    """Yield the table row of a field, then those of the fields below it, named by their path."""
    label = f"**`{path}`**" if required else f"`{path}`"
    mark = " ◇" if field.get("x-speed") else ""
    default = "" if "default" not in field else f"`{_short(field['default'])}`"
    kind = ", ".join([type_text(field, definitions), *_bounds(field)])
    cells = (label + mark, _cell(kind), _cell(default), _cell(field.get("description", "")))
    yield f"| {' | '.join(cells)} |\n"
    for suffix, group in _groups(field, definitions):
        for name, inner in group["properties"].items():
            if path.count(".") < 3:
                yield from _rows(f"{path}{suffix}.{name}", inner, definitions, name in group.get("required", ()))


def _groups(field: Schema, definitions: Schema, suffix: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield the groups of fields that a value may be; `[]` stands for an item of a list, `.NAME` for a value of a mapping."""
    if "$ref" in field:
        target = definitions[field["$ref"].rpartition("/")[2]]
        yield from [(suffix, target)] if "properties" in target else _groups(target, definitions, suffix)
    for option in (*field.get("anyOf", ()), *field.get("oneOf", ())):
        yield from _groups(option, definitions, suffix)
    for key, more in (("items", "[]"), ("additionalProperties", ".NAME")):
        if isinstance(field.get(key), Mapping):
            yield from _groups(field[key], definitions, suffix + more)


def _bounds(field: Schema) -> Iterator[str]:
    """Yield the bounds of a number, also where it may be something else instead."""
    for option in (field, *field.get("anyOf", ())):
        found = [f"{words} {option[key]}" for key, words in BOUNDS.items() if key in option]
        yield from [" and ".join(found)] if found else []


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
