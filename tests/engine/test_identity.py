"""Canonical JSON, digests, keys and parameters."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from caiflow.engine.field_marks import identity_params
from caiflow.engine.identity import KeyStart, NoIdentityError, canonical, compact, compact_all, digest, json_writer, key
from caiflow.engine.operator import SPEED, ModelRef, ModelRowParams, Resources, RowsRef, SamplingParams, Strict

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
plain = st.recursive(
    st.booleans() | st.integers(-99, 99) | st.text("abc :'\"\n#-", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=3),
    max_leaves=8,
)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(values)
def test_key_order_and_lists_against_tuples_do_not_matter(value: Any) -> None:
    assert digest(value) == digest(reordered(value))
    assert digest([value]) == digest((value,))


@given(plain, st.booleans())
def test_yaml_style_does_not_matter(value: Any, flow: bool) -> None:
    assert digest(yaml.safe_load(yaml.safe_dump(value, default_flow_style=flow))) == digest(value)
    assert digest(json.loads(json.dumps(value))) == digest(value)


@given(values, values)
def test_different_values_differ(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == (repr(reordered_floats(one)) == repr(reordered_floats(other)))


def reordered_floats(value: Any) -> Any:
    """The value with keys sorted and whole floats as integers, so that `repr` tells apart what the digest must."""
    if isinstance(value, dict):
        return {name: reordered_floats(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [reordered_floats(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def test_numbers_that_yaml_makes_equal_are_equal_and_flags_are_not_numbers() -> None:
    assert digest({"lr": 1}) == digest({"lr": 1.0})
    assert digest(1) != digest(True)
    assert digest(0.1) != digest(0)
    assert digest(math.nan) == digest(math.nan) != digest(math.inf) != digest("inf")
    assert digest(None) != digest("null")
    assert digest({1: "a"}) == digest({"1": "a"}) == digest({1.0: "a"})
    assert canonical({None: 1, 0.5: frozenset()}) == b'{"0.5":[],"null":1}'


@given(values)
def test_the_short_way_gives_what_the_long_way_gives(value: Any) -> None:
    # a set is what only the long way knows
    assert canonical([value, frozenset()]) == b"[" + canonical(value) + b",[]]"


def test_kinds_of_text_and_numbers_count_as_plain_ones() -> None:
    class Stage(str, Enum):  # noqa: UP042  (its str() is another than StrEnum's)
        FIRST = "first"

    assert canonical({"stage": Stage.FIRST, Stage.FIRST: 1}) == b'{"first":1,"stage":"first"}'
    assert canonical([Stage.FIRST, frozenset()]) == b'["first",[]]'
    assert canonical([IntEnum("Level", {"LOW": 1}).LOW, b"\x00", frozenset({2, 1})]) == b'[1,{"$bytes":"00"},[1,2]]'


def test_a_digest_never_changes_between_versions() -> None:
    assert canonical({"b": [1.5, None], "a": "é\ud800"}) == b'{"a":"\xc3\xa9\xed\xa0\x80","b":[1.5,null]}'
    assert digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@pytest.mark.parametrize("value", [Path("/tmp"), object(), {(1, 2): 1}, lambda: 0])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(NoIdentityError, match="identity"):
        canonical(value)


@pytest.mark.parametrize("value", [Path("/tmp"), object(), {2, 1}, frozenset("ab"), Strict(), lambda: 0])
def test_a_row_key_refuses_what_the_next_process_may_write_otherwise(value: Any) -> None:
    with pytest.raises(NoIdentityError, match=rf"^identity: turns\.1\.by: {type(value).__name__} has no form"):
        compact({"uid": "1", "turns": [{"by": 1}, {"by": value}]})


def test_what_is_refused_is_named_with_its_place() -> None:
    class Held(Strict):
        folder: Any

    with pytest.raises(NoIdentityError, match=r"^identity: held\.0\.folder: PosixPath has no form .* got PosixPath\('/tmp'\)"):
        digest({"held": [Held(folder=Path("/tmp"))]})
    with pytest.raises(NoIdentityError, match=r"^identity: by: a key must be text or a number, got \(1, 2\)"):
        digest({"by": {(1, 2): 1}})
    with pytest.raises(NoIdentityError, match=r"^identity: by: keys must be str"):
        compact({"by": {(1, 2): 1}})


def test_a_row_key_never_changes_between_versions() -> None:
    held = {"uid": "é\ud800", "n": 1.0, "when": datetime(2026, 1, 2, tzinfo=UTC), "cost": Decimal("1.50"), "raw": b"\x00"}
    written = b'{"cost":"1.50","n":1.0,"raw":"b\'\\\\x00\'","uid":"\xc3\xa9\xed\xa0\x80","when":"2026-01-02 00:00:00+00:00"}'
    assert compact(held) == written
    assert compact_all([held, {}, 1]) == [written, b"{}", b"1"]


@given(st.recursive(values, lambda inner: st.lists(inner, max_size=3).map(tuple)))
def test_a_row_is_written_as_the_standard_library_does(value: Any) -> None:
    options: Any = {"ensure_ascii": False, "separators": (",", ":"), "sort_keys": True}
    for held in (value, {"value": value, "bits": 2**64, "half": "\udc00"}):
        assert compact(held) == json.dumps(held, **options).encode("utf-8", "surrogatepass")
        assert compact_all([held, held]) == [compact(held)] * 2


@given(st.lists(st.text() | st.binary(), max_size=4), st.lists(st.text() | st.binary(), max_size=4))
def test_a_key_begun_before_is_the_same_key(begun: list[str | bytes], more: list[str | bytes]) -> None:
    assert KeyStart(*begun).key(*more) == key(*begun, *more)
    parts = [part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass") for part in more]
    assert KeyStart(*begun).keys(*([part, b"other"] for part in parts))[:1] == [key(*begun, *more)] * bool(parts)


@pytest.mark.parametrize("sort_keys", [False, True])
def test_json_is_what_the_standard_library_writes(sort_keys: bool) -> None:
    value = {"b": ['ä\ud800\n\x01"', 1e16, 0.1, -0.0, math.inf, math.nan, None, True, ()], "a": {"2": {}, 1.5: 10**20}}
    given = value["b"] if sort_keys else value
    options: Any = {"ensure_ascii": False, "separators": (",", ":"), "sort_keys": sort_keys}
    assert json_writer(sort_keys=sort_keys)(given) == json.dumps(given, **options)
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_writer(allow_nan=False)(math.nan)


def test_keys_tell_where_parts_end() -> None:
    assert key("ab", "c") != key("a", "bc") != key("abc")
    assert key("a", b"b") == key(b"a", "b")
    assert len(key()) == 16


class Deep(Strict):
    column: str = "response"
    threads: int = Field(default=1, json_schema_extra=SPEED)


class Everything(ModelRowParams):
    other: RowsRef | None = None
    inputs: dict[RowsRef, float] = Field(default_factory=dict)
    labelled: dict[str, RowsRef] = Field(default_factory=dict)
    judges: tuple[ModelRef, ...] = ()
    template: str = Field(default="", json_schema_extra={"x-path": "file"})
    either: Annotated[str, Field(json_schema_extra={"x-path": "file"})] | list[str] = ""
    sampling: SamplingParams = SamplingParams()
    deep: Deep = Deep()
    score: float = 0.5


BASE: dict[str, Any] = {
    "input": "a", "model": "m", "inputs": {"a": 1, "b": 2.5}, "labelled": {"harmful": "a"},
    "other": "c", "either": "z.txt", "judges": ("m", "n"), "template": "x.jinja",
}  # fmt: skip


def identity_of(**changed: Any) -> str:
    return digest(identity_params(Everything(**{**BASE, **changed})))


@pytest.mark.parametrize(
    "changed",
    [
        {"input": "renamed", "model": "renamed", "other": "renamed"},
        {"inputs": {"renamed": 1, "b": 2.5}},
        {"labelled": {"harmful": "renamed"}},
        {"judges": ("x", "y")},
        {"template": "moved/x.jinja", "either": "y.txt"},
        {"concurrency": 99, "retries": 0, "max_failed": 7, "description": "words", "resources": Resources(workers=4)},
        {"deep": {"threads": 8}},
        {"inputs": {"a": 1.0, "b": 2.5}},
    ],
)
def test_names_paths_and_speed_keep_the_identity(changed: dict[str, Any]) -> None:
    assert identity_of(**changed) == identity_of()


@pytest.mark.parametrize(
    "changed",
    [
        {"score": 0.25},
        {"inputs": {"a": 1, "b": 2}},
        {"inputs": {"b": 2.5, "a": 1}},
        {"labelled": {"helpful": "a"}},
        {"either": ["y.txt"]},
        {"other": None},
        {"sampling": {"temperature": 0.7}},
        {"sampling": {"stop": ("\n",)}},
        {"deep": {"column": "revision"}},
    ],
)
def test_whatever_changes_the_output_changes_the_identity(changed: dict[str, Any]) -> None:
    assert identity_of(**changed) != identity_of()
