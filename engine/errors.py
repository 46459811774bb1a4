"""The one tree of errors that caiflow raises on purpose, the forms in which a finding travels before it has a place, and hints.

Every text reads `<where>: <what is wrong>, got <value>; <what to do>`: what is wrong and what to do are kept apart and joined
here alone. All errors pickle, since they cross Ray. This module imports nothing of caiflow and never prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MANY = 300
"""Names among which only the same letters in another order are looked for: comparing each pair of thousands takes minutes."""


def joined(message: str, hint: str) -> str:
    """Return what is wrong and what to do, as one text."""
    return f"{message}; {hint}" if hint else message


class Finding(NamedTuple):
    """One thing wrong with a step's parameters: what an operator's `check()` and `check_columns()` yield.

    `path` leads to the parameter, such as `("drop", 0)`, and is empty for the step itself; `hint` says what to do, or is empty.
    """

    path: tuple[str | int, ...]
    message: str
    hint: str = ""

    def below(self, *path: str | int) -> Finding:
        """Return the finding of a part of something at `path`."""
        return self._replace(path=(*path, *self.path))


class _Hinted(Exception):
    """An error with a message and, apart from it, a hint at what to do (or none); its text is both."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return joined(self.message, self.hint)


class WrongValue(_Hinted, ValueError):
    """A value can't be taken: what operators and validators of parameters raise where there is something to advise."""


def finding(error: Exception, path: tuple[str | int, ...] = ()) -> Finding:
    """Return what an error says about the parameter at `path`."""
    return Finding(path, error.message, error.hint) if isinstance(error, _Hinted) else Finding(path, str(error))


def refusal(detail: Mapping[str, Any]) -> tuple[str, str]:
    """Return what one of pydantic's errors says is wrong and, where a validator's own error told, what to do."""
    raised = detail.get("ctx", {}).get("error")
    return finding(raised)[1:] if isinstance(raised, Exception) else (detail["msg"], "")


class CaiflowError(_Hinted):
    """Base of everything caiflow raises on purpose; its text is meant for the user."""


class Problem(NamedTuple):
    """One thing wrong with a spec, at the key or value that causes it.

    `line` and `col` count from 1; `path` is dotted (`steps.critique.model`); `hint` says what to do, or is empty.
    """

    file: str
    line: int
    col: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.col}: "
        return " ".join(f"{place}{joined(self.message, self.hint)}".splitlines())


class SpecError(CaiflowError):
    """A spec or a command line is wrong; `problems` holds every finding in order of place."""

    def __init__(self, problems: tuple[Problem, ...] | str, hint: str = "") -> None:
        self.problems = () if isinstance(problems, str) else tuple(problems)
        super().__init__(problems if isinstance(problems, str) else "\n".join(map(str, self.problems)), hint)


class PlanError(CaiflowError):
    """A valid spec can't be carried out here: resources, a drifted lock, an unreadable model."""


class UnreachableError(PlanError, ValueError):
    """What only the hub could tell isn't known: it is out of reach, or mayn't be asked. A plan goes on without, a run can't."""


class ClusterError(PlanError):
    """The cluster can't carry out the run: it can't be reached, lacks what is asked for, or its nodes aren't fit."""


class StepError(CaiflowError):
    """A step failed while it ran; the runner adds its name and the path of its log."""


class StoreError(CaiflowError):
    """The store can't be read or written: no space, no permission, a corrupt artifact."""


class DamagedError(StoreError):
    """A sealed artifact isn't as it was sealed: files are missing or changed."""


class EngineError(CaiflowError):
    """An engine couldn't start or answer.

    `retry` says whether the same request may succeed later (a timeout, a lost engine) or never will (context overflow).
    `kind` is a stable word for the class of error, kept in tombstones: `overflow`, `timeout`, `refused`, `engine_lost`, ...
    """

    def __init__(self, message: str, hint: str = "", *, kind: str = "engine", retry: bool = False) -> None:
        super().__init__(message, hint)
        self.kind = kind
        self.retry = retry


class AskAnewError(CaiflowError):
    """A server turned out to need asking in another way, so that its answers count as another model's: the work begins anew."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name most like `name`, or None where none is alike; letter case and `-` against `_` don't count."""
    plain = {_plain(candidate): candidate for candidate in reversed(list(names))}
    asked = _plain(name)
    letters = sorted(asked)
    swapped = next((candidate for candidate in plain if sorted(candidate) == letters), None) if asked else None
    if swapped is not None or not asked or len(plain) > MANY:
        return plain.get(swapped or "")
    from difflib import get_close_matches

    found = get_close_matches(asked, plain, n=1, cutoff=0.6)
    if not found and len(asked) >= 3:
        begun = [candidate for candidate in plain if candidate.startswith(asked)]
        found = begun if len(begun) == 1 else []
    return plain[found[0]] if found else None


def suggest(name: str, names: Iterable[str], what: str) -> str:
    """Return a hint: `did you mean x?`, or the valid names, or that there are none. `what` is their plural."""
    names = list(names)
    found = nearest(name, names)
    if found is not None:
        return f"did you mean `{found}`?"
    if not names:
        return f"there are no {what} to name"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"{what}: {shown}"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
