"""Types of a source's own columns: any JSON comes back as it was, as Arrow values or as JSON text."""

from __future__ import annotations

import json
from datetime import date
from functools import reduce
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.operators.formats.shapes import MESSAGES, ListOf, Struct, arrow_type, column_type, fit, merge, shape_of

leaf = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5)
anything = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ([None, None], "null"),
        ([1, None, 2.5], "number"),
        ([True, 1], "text"),
        (["a", None, 1, True], "text"),
        ([2**63], "text"),
        ([1.5, 2**63], "text"),
        ([2**53 + 1, None, 1], "long"),
        ([2**53 + 1, 0.5], "text"),
        ([0.5, 1, -(2**63) + 1], "text"),
        ([2**62, 0.5], "number"),
        (["a", 1, {}], "json"),
        ([["a"], "a"], "json"),
        ([["a"], [1]], ListOf("text")),
        ([[], ["a"], None], ListOf("text")),
        ([[1], [2.5, None]], ListOf("number")),
        ([{"a": 1}, {"b": "x"}], Struct((("a", "integer"), ("b", "text")))),
        ([{}], "json"),
        ([{str(key): 1 for key in range(100)}], "json"),
        ([{str(key): 1} for key in range(100)], "json"),
        ([[{"role": "user", "content": "x"}]], MESSAGES),
    ],
)
def test_shapes_of_values_taken_together(values: list[Any], shape: Any) -> None:
    assert reduce(merge, map(shape_of, values)) == shape


def test_words_for_shapes() -> None:
    assert column_type(MESSAGES) == "messages"
    assert column_type(ListOf(MESSAGES)) == "conversations"
    assert column_type(ListOf("number")) == "numbers"
    assert column_type(Struct((("a", "text"),))) is None


def test_plain_values_of_several_kinds_are_text_as_json_writes_them() -> None:
    values = ["home", 5, 2.5, True, None, 2**70, date(2026, 11, 21)]
    shape = reduce(merge, map(shape_of, values))
    assert [fit(value, shape) for value in values] == ["home", "5", "2.5", "true", None, str(2**70), "2026-11-21"]
    assert column_type(shape) == "text"


@given(st.lists(anything, min_size=1, max_size=5))
def test_any_json_comes_back(values: list[Any]) -> None:
    shape = reduce(merge, map(shape_of, values))
    stored = pa.array([fit(value, shape) for value in values], arrow_type(shape)).to_pylist()
    for value, back in zip(values, stored, strict=True):
        assert _same(value, back, shape)


def _same(value: Any, back: Any, shape: Any) -> bool:
    if value is None:
        return back is None
    if shape == "json":
        return bool(json.loads(back) == value)
    if shape == "text":
        return bool(back == (value if isinstance(value, str) else json.dumps(value)))
    if isinstance(shape, ListOf):
        return len(value) == len(back) and all(_same(a, b, shape.item) for a, b in zip(value, back, strict=True))
    if isinstance(shape, Struct):
        return all(_same(value.get(name), back[name], inner) for name, inner in shape.fields)
    return bool(float(value) == back if shape == "number" else value == back)
