"""The one tree of errors that caiflow raises on purpose.

Every message reads `<where>: <what is wrong>, got <value>; <what to do>`. All of them pickle, since they cross Ray.
This module imports nothing of caiflow and never prints.
"""

from __future__ import annotations

from typing import NamedTuple


class CaiflowError(Exception):
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
        text = f"{self.file}:{self.line}:{self.col}: {self.message}"
        return f"{text}; {self.hint}" if self.hint else text


class SpecError(CaiflowError):
    """A spec or a command line is wrong; `problems` holds every finding in order of place."""

    def __init__(self, problems: tuple[Problem, ...] | str) -> None:
        self.problems = () if isinstance(problems, str) else tuple(problems)
        super().__init__(problems if isinstance(problems, str) else "\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[Problem, ...] | str]]:
        return SpecError, (self.problems or str(self),)


class PlanError(CaiflowError):
    """A valid spec can't be carried out here: resources, a drifted lock, an unreadable model."""


class StepError(CaiflowError):
    """A step failed while it ran; the runner adds its name and the path of its log."""


class StoreError(CaiflowError):
    """The store can't be read or written: no space, no permission, a corrupt artifact."""


class EngineError(CaiflowError):
    """An engine couldn't start or answer.

    `retry` says whether the same request may succeed later (a timeout, a lost engine) or never will (context overflow).
    `kind` is a stable word for the class of error, kept in tombstones: `overflow`, `timeout`, `refused`, `engine_lost`, ...
    """

    def __init__(self, message: str, *, kind: str = "engine", retry: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry = retry

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_engine_error, (str(self), self.kind, self.retry)


def _rebuild_engine_error(message: str, kind: str, retry: bool) -> EngineError:
    return EngineError(message, kind=kind, retry=retry)
