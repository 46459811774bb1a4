"""Which steps of a run have a line of their own where there are more than lines: the rest is folded, never left out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from caiflow.engine.display.board import StepState

_Lines = Sequence["StepState | Fold"]


@dataclass(frozen=True, slots=True)
class Fold:
    """Several steps on one line."""

    look: str
    """Their status, as of a step."""
    title: str
    names: tuple[str, ...]


def folded(steps: Sequence[StepState], room: int) -> list[StepState | Fold]:
    """Return the lines for steps, of which those at work and those that failed are folded last, in at most `room` lines."""
    lines: list[StepState | Fold] = list(steps)
    for fold in (_arms, _made, _noted, _waiting, _skipped):
        if len(lines) > room:
            lines = fold(lines)
    return lines if len(lines) <= room else [*lines[: room - 1], _rest(lines[room - 1 :])]


def _arms(lines: _Lines) -> list[StepState | Fold]:
    """Fold each step's arms of a matrix but those at work, and say how many are through."""
    arms: dict[str, list[StepState]] = {}
    for line in lines:
        if isinstance(line, StepState) and "@" in line.name:
            arms.setdefault(line.name.partition("@")[0], []).append(line)
    found: list[StepState | Fold] = []
    for line in lines:
        several = arms.get(line.name.partition("@")[0], []) if isinstance(line, StepState) else []
        if len(several) < 2 or not isinstance(line, StepState):
            found.append(line)
            continue
        if line is several[0]:
            found.append(_arms_of(several))
        if line.look() in ("running", "failed"):
            found.append(line)
    return found


def _arms_of(arms: Sequence[StepState]) -> Fold:
    base = arms[0].name.partition("@")[0]
    through = [step for step in arms if step.ended]
    looks = [step.look() for step in arms]
    look = next(
        (look for look in ("failed", "running", "noted") if look in looks), "waiting" if len(through) < len(arms) else "done"
    )
    rest = () if len(through) == len(arms) else tuple(step.name.partition("@")[2] for step in arms if not step.ended)
    return Fold(look, f"{base}: {len(through)} of {len(arms)} arms", rest)


def _together(looks: Sequence[str], title: str) -> Callable[[_Lines], list[StepState | Fold]]:
    def fold(lines: _Lines) -> list[StepState | Fold]:
        chosen = [line for line in lines if isinstance(line, StepState) and line.look() in looks]
        if len(chosen) < 2:
            return list(lines)
        one = Fold(looks[0], f"{len(chosen)} {title}", tuple(step.name for step in chosen))
        return [one if line is chosen[0] else line for line in lines if line is chosen[0] or line not in chosen]

    return fold


_made = _together(("done", "cached"), "made")
_noted = _together(("noted",), "made, with notes")
_waiting = _together(("waiting", "not run"), "to come")
_skipped = _together(("skipped", "interrupted"), "left out")


def _rest(lines: _Lines) -> Fold:
    names = tuple(line.name if isinstance(line, StepState) else line.title for line in lines)
    return Fold("running", f"{len(names)} more", names)
