"""YAML with places: the values of YAML 1.2, the place of every key and value, anchors and merges."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.engine.yaml.reader import parse_yaml, scalar
from caiflow.engine.yaml.tree import Location, dotted


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1E6", 1e6),
        (".5", 0.5),
        ("7", 7),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("true", True),
        ("yes", "yes"),
        ("off", "off"),
        ("~", None),
        ("", None),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_quoted_scalars_are_text() -> None:
    assert parse_yaml("a: '1'\nb: \"true\"\nc: ''\nd: |\n  2\n", "f").plain() == {"a": "1", "b": "true", "c": "", "d": "2\n"}


def test_every_key_and_value_knows_its_place() -> None:
    tree = parse_yaml("a: 1\nüb:\n  - x\n  - {k: [v, w]}\n", "f.yaml")
    assert tree.get("a").at == Location("f.yaml", 1, 4)
    assert tree.get("üb").key == Location("f.yaml", 2, 1)
    assert tree.get("üb", 0).at == Location("f.yaml", 3, 5)
    assert tree.get("üb", 1, "k").key == Location("f.yaml", 4, 6)
    assert tree.get("üb", 1, "k", 1).at == Location("f.yaml", 4, 13)
    assert tree.get("üb", 1, "none") is None
    assert tree.nearest(("üb", "a name of a union member", 1, "k", 9)).at == Location("f.yaml", 4, 9)


def test_keys_are_text_whatever_they_look_like() -> None:
    assert parse_yaml("1: a\ntrue: b\non: c\n", "f").plain() == {"1": "a", "true": "b", "on": "c"}


def test_anchors_are_expanded_and_merges_give_way() -> None:
    tree = parse_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: *x\nw:\n  <<: [{a: 9}, *x]\n", "f")
    assert tree.plain()["y"] == {"a": 1, "b": 3}
    assert tree.plain()["z"] == {"a": 1, "b": 2}
    assert tree.plain()["w"] == {"a": 9, "b": 2}
    assert tree.get("z").at == Location("f", 3, 4)


def test_an_empty_file_is_null() -> None:
    assert parse_yaml("# only a comment\n", "f").plain() is None


def test_paths_are_shown_with_dots_and_positions() -> None:
    assert dotted(("steps", "pair", "samples", 0, "top_k")) == "steps.pair.samples[0].top_k"


_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Zl", "Zp"), exclude_characters="\ufeff"))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT.filter(lambda key: key != "<<"), inner, max_size=4),
    max_leaves=20,
)


@given(_VALUES)
def test_json_reads_as_itself(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert json.dumps(parse_yaml(text, "f").plain(), sort_keys=True) == json.dumps(json.loads(text), sort_keys=True)
