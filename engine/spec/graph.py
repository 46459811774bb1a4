"""The graph of a spec: its steps, and the edges where a parameter names another step.

Pure functions; knows no operator and reads no file. Entries of `models:` are not steps, so they are no nodes here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from caiflow.engine.errors import SpecError, suggest

if TYPE_CHECKING:
    from caiflow.engine.spec.grammar import Spec, Step

Edges = Mapping[str, tuple[str, ...]]


def upstream_of(step: Step, spec: Spec) -> tuple[str, ...]:
    """Return the steps that `step` waits for, each once: those it names, in that order, then what steps named with it wait for.

    Steps that end where enough rows passed go on together, so that the first one waits for what any of them needs.
    """
    own = [ref.name for ref in step.references() if ref.name in spec.steps]
    for last, members in spec.led_up_to.items():
        if step.name in members:
            later = [*members[members.index(step.name) + 1 :], last]
            named = (ref.name for name in later for ref in spec.steps[name].references() if ref.name in spec.steps)
            own += (name for name in named if name not in members)
    return tuple(dict.fromkeys(own))


def led_up_to(last: str, inputs: Mapping[str, str], needs: Edges) -> tuple[str, ...]:
    """Return the steps that make rows for `last` one by one, the first one first; `inputs` has the input of each that may.

    It goes back as far as none of them waits for rows of another in any other way.
    """
    found: list[str] = []
    behind, beside = last, set[str]()
    while True:
        before = inputs[behind]
        beside |= {*needs.get(behind, ())} - {before}
        if before not in inputs or before in found or before in reach(beside, needs):
            return tuple(reversed(found))
        found.append(before)
        behind = before


def edges(spec: Spec) -> dict[str, tuple[str, ...]]:
    """Return, for each step in file order, the steps it needs."""
    return {name: upstream_of(step, spec) for name, step in spec.steps.items()}


def order(needs: Edges) -> list[str]:
    """Return the names so that each comes after what it needs; otherwise in the given order.

    Raises:
        ValueError: there is a cycle; its message names it.
    """
    lacking = {name: {need for need in found if need in needs} for name, found in needs.items()}
    users: dict[str, list[str]] = {name: [] for name in needs}
    for name, found in lacking.items():
        for need in found:
            users[need].append(name)
    place = {name: number for number, name in enumerate(needs)}
    ready = [number for name, number in place.items() if not lacking[name]]
    names, done = list(needs), []
    while ready:
        name = names[heapq.heappop(ready)]
        done.append(name)
        for user in users[name]:
            lacking[user].discard(name)
            if not lacking[user]:
                heapq.heappush(ready, place[user])
    if len(done) < len(names):
        raise ValueError("cycle: " + " -> ".join(cycles({name: tuple(found) for name, found in lacking.items() if found})[0]))
    return done


def cycles(needs: Edges) -> list[list[str]]:
    """Return each cycle once as `[a, b, a]`, where a needs b; cycles that share a step with an earlier one are left out."""
    found: list[list[str]] = []
    settled: set[str] = set()
    for start in needs:
        path: list[str] = []
        stack = [(start, iter(needs[start]))] if start not in settled else []
        path.extend(name for name, _ in stack)
        while stack:
            need = next(stack[-1][1], None)
            if need is None:
                settled.add(stack.pop()[0])
                path.pop()
            elif need in path:
                found.append([*path[path.index(need) :], need])
                settled.update(path)
                break
            elif need in needs and need not in settled:
                stack.append((need, iter(needs[need])))
                path.append(need)
    return found


def reach(starts: Iterable[str], needs: Edges) -> set[str]:
    """Return the starts and everything they need, however far."""
    seen: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(needs.get(name, ()))
    return seen


def topological(spec: Spec) -> list[Step]:
    """Return the steps so that each comes after what it needs; otherwise in file order."""
    return [spec.steps[name] for name in order(edges(spec))]


def ancestors(spec: Spec, name: str) -> set[str]:
    """Return every step that `name` needs, however far; without itself."""
    return reach([name], edges(spec)) - {name}


def chosen(spec: Spec, last: str | None) -> set[str]:
    """Return the steps of a run up to `last`, or up to all its arms; all steps where it is None.

    Raises:
        SpecError: there is no such step.
    """
    if last is None:
        return set(spec.steps)
    ends = [name for name, step in spec.steps.items() if last in (name, step.base)]
    if not ends:
        raise SpecError(f"caiflow: there is no step {last!r}", suggest(last, spec.steps, "steps"))
    ends += [name for members in spec.led_up_to.values() if {*ends} & {*members} for name in members]
    return set(ends).union(*(ancestors(spec, name) for name in ends))
