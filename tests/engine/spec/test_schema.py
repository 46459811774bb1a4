"""The schema: fresh, valid, described, and of one mind with the parameter models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import caiflow.constitutions
import caiflow.examples.tiny
import caiflow.specs
from caiflow.engine import registry
from caiflow.engine.spec import schema
from caiflow.engine.version import VERSION
from support import small_operators

RECIPES = sorted(
    path for package in (caiflow.specs, caiflow.examples.tiny) for path in Path(str(package.__file__)).parent.rglob("*.yaml")
    if "caiflow:" in path.read_text(encoding="utf-8")
)  # fmt: skip


def test_the_shipped_schema_is_fresh() -> None:
    fresh = schema.text(schema.generate(tuple(registry.BUILT_IN)))
    assert schema.SHIPPED.read_text(encoding="utf-8") == fresh, "run python -m caiflow.engine.spec.schema"


def test_it_says_which_caiflow_it_is_of() -> None:
    assert json.loads(schema.SHIPPED.read_text())["x-caiflow-version"] == VERSION


def test_it_is_a_valid_schema_of_its_draft() -> None:
    Draft202012Validator.check_schema(schema.shipped())


def test_every_field_of_every_operator_is_described() -> None:
    for name, found in schema.shipped()["$defs"].items():
        for field, content in found.get("properties", {}).items():
            assert content.get("description") or (name.startswith("op:") and field == "op"), f"{name}.{field} lacks a docstring"


def test_marks_and_docs_are_in_it() -> None:
    with registry.extra(*small_operators.ALL):
        made = schema.describe("train")
    properties = made["properties"]
    assert properties["input"]["x-ref"] == "rows"
    assert properties["model"]["x-ref"] == "model"
    assert properties["workers"]["x-speed"] is True
    assert properties["epochs"]["description"] == "Passes over the rows."
    assert (made["x-kind"], made["description"]) == ("model", "Train a model.")
    assert made["required"] == ["input", "model"]


def test_plugins_are_added_to_what_ships() -> None:
    with registry.extra(small_operators.Ask):
        made = schema.spec_schema(["ask", "load"])
    assert {"op:ask", "op:load"} <= set(made["$defs"])
    step: dict[str, Any] = {"op": "ask", "input": "d", "model": "m"}
    checker = Draft202012Validator(made)
    assert checker.is_valid({"caiflow": 1, "steps": {"a": step}})
    assert not checker.is_valid({"caiflow": 1, "steps": {"a": {**step, "inputt": 1}}})
    assert not checker.is_valid({"caiflow": 1, "steps": {"a": {**step, "op": "asks"}}})


def test_a_step_of_an_extending_spec_needs_no_op() -> None:
    checker = Draft202012Validator(schema.shipped())
    assert checker.is_valid({"caiflow": 1, "extends": "paper", "steps": {"sl_cai": {"epochs": 3}}})
    assert not checker.is_valid({"caiflow": 1, "steps": {"sl_cai": {"epochs": 3}}})


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_each_recipe_holds_to_the_schema_as_editors_see_it(path: Path) -> None:
    errors = list(Draft202012Validator(schema.shipped()).iter_errors(yaml.safe_load(path.read_text(encoding="utf-8"))))
    assert not errors, errors[0]


BUNDLED = sorted(Path(str(caiflow.constitutions.__file__)).parent.glob("*.yaml"))


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_constitutions_fit_the_schema_of_constitutions_and_slips_don_t(path: Path) -> None:
    made = schema.constitution_schema()
    Draft202012Validator.check_schema(made)
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert not list(Draft202012Validator(made).iter_errors(data))
    for slip in ({**data, "principels": []}, {**data, "principles": [{"id": 3}]}, {**data, "caiflow_constitution": 2}):
        assert list(Draft202012Validator(made).iter_errors(slip))


def test_every_field_of_a_constitution_is_described() -> None:
    made = schema.constitution_schema()
    for part in (made, *made["$defs"].values()):
        for name, field in part["properties"].items():
            assert field.get("description"), name
