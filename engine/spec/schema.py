"""The JSON Schema of the spec language (draft 2020-12), made from the operators' parameter models.

Owns `schema.json`, which ships with caiflow so that editors and the validator needn't import every operator; `python -m
caiflow.engine.spec.schema` writes it anew. Each field's description is the docstring under it; the marks `x-ref`, `x-path`,
`x-column`, `x-expression`, `x-principles` and `x-speed` stay in. Never validates anything itself.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import sys
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from caiflow.engine import registry
from caiflow.engine.display.terminal import say
from caiflow.engine.spec.grammar import SpecFile
from caiflow.engine.version import VERSION

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import core_schema

    from caiflow.engine.operator import Operator

Schema = dict[str, Any]
SHIPPED = Path(__file__).parents[1] / "schema.json"
_CONSTITUTION: Schema = {"type": ["string", "array", "object"]}
DRAFT = "https://json-schema.org/draft/2020-12/schema"


@cache
def shipped() -> Schema:
    """Return the schema of the language with the built-in operators, as it ships; not to be changed."""
    schema: Schema = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return schema


def spec_schema(operators: Sequence[str] | None = None) -> Schema:
    """Return the schema for these operators, or for all there are; the shipped one where it covers them.

    An operator left out may still be named by `op:`, but its parameters aren't described.
    """
    wanted = registry.names() if operators is None else tuple(operators)
    if all(map(registry.is_built_in, wanted)):
        return shipped()
    return generate(wanted, registry.names())


def generate(operators: Sequence[str], known: Sequence[str] = ()) -> Schema:
    """Return the schema made from the models of these operators; not to be changed. `op:` may name the `known` ones too."""
    return _generate(tuple((name, registry.operator(name)) for name in operators), tuple(known))


@cache
def _generate(operators: tuple[tuple[str, type[Operator[Any]]], ...], known: tuple[str, ...]) -> Schema:
    types = dict(operators)
    models: dict[str, type[BaseModel]] = {name: found.params_type for name, found in types.items()}
    every: list[type[BaseModel]] = [SpecFile, *models.values()]
    pairs: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in every]
    refs, definitions = models_json_schema(pairs, schema_generator=_Generator, ref_template="#/$defs/{model}")
    defs: dict[str, Schema] = definitions["$defs"]
    top = defs.pop(_name(refs[SpecFile, "validation"]))
    branches = []
    for name, model in models.items():
        inner = _name(refs[model, "validation"])
        defs[f"op:{name}"] = _step(name, types[name], defs[inner])
        chosen = {"type": "object", "properties": {"op": {"const": name}}, "required": ["op"]}
        branches.append({"if": chosen, "then": {"$ref": f"#/$defs/op:{name}"}})
    for model in models.values():
        defs.pop(_name(refs[model, "validation"]), None)
    names = list(dict.fromkeys((*known, *types)))
    told = [_summary(types[name]) if name in types else "" for name in names]
    op = {"description": "The operator.", "enum": names, "markdownEnumDescriptions": told}
    defs["step"] = {"type": ["object", "null"], "properties": {"op": op}, "allOf": branches}
    top["properties"]["steps"]["additionalProperties"] = {"$ref": "#/$defs/step"}
    top["required"] = ["caiflow"]
    top["if"] = {"not": {"required": ["extends"]}}
    whole_step = {"properties": {"steps": {"additionalProperties": {"type": "object", "required": ["op"]}}}}
    top["then"] = {"required": ["steps"], **whole_step}
    return {"$schema": DRAFT, "title": "caiflow spec", "x-caiflow-version": VERSION, **top, "$defs": dict(sorted(defs.items()))}


@cache
def constitution_schema() -> Schema:
    """Return the schema of a constitution's file in caiflow's own format; not to be changed."""
    from caiflow.engine.constitution.own_format import ConstitutionFile

    made = ConstitutionFile.model_json_schema(schema_generator=_Generator)
    for entry in made["$defs"].values():  # a text stands for one turn of the user
        if "prompt" in entry.get("properties", {}):
            turns = entry["properties"]["prompt"]
            told = {"description": turns.pop("description"), "anyOf": [{"type": "string"}, turns]}
            entry["properties"]["prompt"] = told
    return {"$schema": DRAFT, "title": "caiflow constitution", "x-caiflow-version": VERSION, **made}


def describe(operator: str) -> Schema:
    """Return one operator's part of the schema, its references resolved under `$defs`.

    It is an object schema with `description`, `x-kind`, `properties` and `required`.
    """
    schema = spec_schema([operator])
    return {**schema["$defs"][f"op:{operator}"], "$defs": schema["$defs"]}


def describe_models() -> Schema:
    """Return the part of the schema that an entry of `models` follows, its references resolved under `$defs`."""
    schema = spec_schema([])
    return {**schema["$defs"]["ModelEntry"], "$defs": schema["$defs"]}


def text(schema: Schema) -> str:
    """Return the schema as the text of its file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _name(ref: Schema) -> str:
    name: str = ref["$ref"].removeprefix("#/$defs/")
    return name


def _summary(operator: type[Operator[Any]]) -> str:
    """Return what an operator does, as editors show it beside its name."""
    return f"{inspect.cleandoc(operator.__doc__ or '')}\n\nMakes {operator.kind}."


def _step(name: str, operator: Any, params: Schema) -> Schema:
    """Return the schema of a step: the parameters, and the keys every step has."""
    constitution = {"description": "A constitution for this step alone, in place of the spec's.", **_CONSTITUTION}
    properties = {"op": {"const": name}, **params.get("properties", {}), "constitution": constitution}
    more = operator.params_type.model_config.get("json_schema_extra")
    return {
        **params,
        **(more if isinstance(more, dict) else {}),  # as it is written: pydantic sorts the keys of an example
        "description": inspect.cleandoc(operator.__doc__ or ""),
        "x-kind": operator.kind,
        "properties": properties,
        "required": params.get("required", []),
    }


class _Generator(GenerateJsonSchema):
    """Adds the docstring under each field as its description and leaves titles out."""

    def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
        """Return a model's schema with its fields described."""
        made = super().model_schema(schema)
        model: type[BaseModel] = schema["cls"]
        docs = field_docs(model)
        for name, field in model.model_fields.items():
            described = made.get("properties", {}).get(field.alias or name)
            if described is not None and name in docs:
                described["description"] = docs[name]
        if made.get("description") is None and model.__doc__:
            made["description"] = inspect.cleandoc(model.__doc__)
        made.pop("title", None)
        return made

    def dict_schema(self, schema: core_schema.DictSchema) -> Schema:
        """Return a mapping's schema; a pattern of its keys as `propertyNames`, so that a wrong key is an error of its own."""
        made = super().dict_schema(schema)
        for pattern, value in made.pop("patternProperties", {}).items():
            made |= {"propertyNames": {"pattern": pattern}, "additionalProperties": value}
        return made

    def field_title_should_be_set(self, _schema: Any) -> bool:
        """Return False: the key itself is the title."""
        return False


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring under each field of a model, its bases included, by field name."""
    docs: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if cls.__module__.partition(".")[0] not in ("builtins", "pydantic", "abc", "typing"):
            docs |= _own_docs(cls)
    return docs


@cache
def _own_docs(cls: type[Any]) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}  # made where there is no source: a prompt, a frozen program
    docs: dict[str, str] = {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    for statement, after in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and isinstance(after, ast.Expr):
            value = after.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs[statement.target.id] = inspect.cleandoc(value.value).replace("\n", " ")
    return docs


def main() -> None:
    """Write `schema.json`, or with `--check` exit 1 where it is out of date."""
    made = text(generate(tuple(registry.BUILT_IN)))
    if "--check" in sys.argv:
        sys.exit(0 if SHIPPED.exists() and SHIPPED.read_text(encoding="utf-8") == made else f"{SHIPPED}: out of date")
    SHIPPED.write_text(made, encoding="utf-8")
    say(f"wrote {SHIPPED}")


if __name__ == "__main__":
    main()
