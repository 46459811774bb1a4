"""The difference between two steps' components, and its words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from caiflow.engine import registry

SERVERS = "servers_read"
"""The component that says how the answers of servers are read."""
WANTED = "until.accepted"
"""The component that says how many rows a chain goes on for."""
_HEX = re.compile(r"[0-9a-f]{32,}")


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (component, old value, new value) for each that differs; a missing one is None.

    What an operator uses may follow from a parameter or the seed; such a change is named once, where it was written. So may
    what the steps behind an `until` go by, which holds the number wanted, too.
    """
    names = dict.fromkeys([*old, *new])
    found = [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]
    written = [_without_place(change) for change in found if not change[0].startswith("uses.")]
    if WANTED in old and any(name == WANTED for name, *_ in found):
        found = [change for change in found if change[0] != "until.steps"]
    return [change for change in found if not change[0].startswith("uses.") or _without_place(change) not in written]


def _without_place(change: tuple[str, Any, Any]) -> tuple[str, Any, Any]:
    return change[0].rpartition(".")[2], *change[1:]


def describe(change: tuple[str, Any, Any]) -> str:
    """Return a change in words: `learning_rate 2e-05 -> 1e-05`, `principle p07 edited`, `input changed`."""
    name, old, new = change
    group, _, rest = name.partition(".")
    if group == "principles":
        return f"principle {rest} {'added' if old is None else 'removed' if new is None else 'edited'}"
    if group == "few_shot" or name.startswith("uses.few_shot."):
        return "few-shot examples edited"
    if group == "inputs":
        return f"{rest} changed" if old is not None else f"{rest} is new"
    if group == "models":
        return f"{rest}: another model"
    if name == SERVERS:
        return "what an older version kept of servers' answers as empty texts or lists is asked again"
    if group == "operator":
        return f"operator {old} -> {new}"
    short = rest if group in ("params", "uses") else name
    if is_digest(new) or is_digest(old):
        return f"{short} changed"
    return f"{short} {_short(old)} -> {_short(new)}"


def is_digest(value: Any) -> bool:
    """Return whether a value stands for something else, as digests and identities do."""
    return isinstance(value, str) and _HEX.search(value) is not None


def why_raised(old: str, new: str) -> str:
    """Return what lies between two versions of one operator (`load@2`), as it says itself; empty where it says nothing."""
    (name, _, version), (former, _, before) = new.partition("@"), old.partition("@")
    if name != former or not registry.exists(name):
        return ""
    told = [why for number, why in registry.operator(name).raised_for.items() if int(before) < number <= int(version)]
    return "; ".join(told)


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
