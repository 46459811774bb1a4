"""Suggestions for names that aren't there."""

from __future__ import annotations

import pytest

from caiflow.engine.errors import nearest, suggest


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("crtique", "critique"),
        ("Revise", "revise"),
        ("red-team", "red_team"),
        ("modle", "model"),  # two letters swapped, though `mode` has more of it in order
        ("gen", "generate"),
        ("re", None),  # too short, and the beginning of two
        ("xyz", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_found(asked: str, found: str | None) -> None:
    assert nearest(asked, ["generate", "critique", "revise", "red_team", "mode", "model"]) == found


def test_a_hint_lists_the_names_where_none_is_near() -> None:
    assert suggest("xyz", ["b", "a"], "steps") == "steps: b, a"
    assert suggest("xyz", [], "models") == "there are no models to name"
    assert suggest("xyz", map(str, range(20)), "steps").endswith("10, 11, ...")


def test_among_thousands_only_swapped_letters_are_looked_for() -> None:
    names = [f"step_{number}" for number in range(5000)]
    assert nearest("setp_4321", names) in names
    assert nearest("stp_4321", names) is None
