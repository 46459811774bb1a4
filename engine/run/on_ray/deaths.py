"""Why a process of Ray's ended, in words: Ray's report tells the node, the memory or the missing module deep in its text.

Owns how that report is read. Ends and begins nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from caiflow.engine.errors import CaiflowError, StepError, first_line

_ABSENT = re.compile(r"ModuleNotFoundError: No module named '([^']+)'")
_PLACE = re.compile(r"(?i)\bip(?:=|: ?)([0-9a-fA-F.:]+[0-9a-fA-F])")
_UNREACHABLE = "ActorUnavailableError"
_OF_THE_NODE = ("its node has died", "node was terminated", "NodeDiedError", "owner's node has crashed")
_OF_MEMORY = ("OutOfMemoryError", "running low on memory", "node running out of memory", "ran out of memory")


class Death(NamedTuple):
    """What a process ended of, as words that follow "its process ended", what to do, and whether another may fare better."""

    why: str
    hint: str
    again: bool = True


def death(error: BaseException) -> Death:
    """Return what Ray's report of a lost process, or of one that couldn't begin, comes to."""
    text, where = f"{type(error).__name__}: {error}", place(error)
    if absent := _ABSENT.search(text):
        return Death(*without_module(absent[1], where), again=False)
    if any(sign in text for sign in _OF_THE_NODE):
        return Death(f"its node was lost{where.replace(' on node', ':')}", "")
    if _UNREACHABLE in text:
        return Death(f"it can't be reached any more{where}", "is its node up?")
    if any(sign in text for sign in _OF_MEMORY):
        return Death(f"the memory was short{where}", "give it a node with more, or less to hold at once")
    return Death(f"{first_line(error)}{where}", "is memory short? `caiflow doctor` says what there is")


def place(error: BaseException) -> str:
    """Return the node that Ray's report names, in words that follow what was there; empty where it names none."""
    found = _PLACE.search(str(error))
    return f" on node {found[1]}" if found else ""


def without_module(name: str, where: str) -> tuple[str, str]:
    """Return what to say of a module that can't be imported, and what to do."""
    return f"there is no module {name}{where}", "install what brings it on every node"


def raised(failure: BaseException, cause: BaseException | None) -> Exception:
    """Return what a step fails by where its work raised: one's own error, a module that its node lacks, or the rest."""
    if isinstance(cause, CaiflowError):
        return cause
    found = death(failure)
    return StepError(_last_line(failure)) if found.again else StepError(found.why, found.hint)


def _last_line(error: BaseException) -> str:
    """Return the line of a remote traceback that says what happened, then the whole, without colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return f"{text.splitlines()[-1]}\n{text}" if text else type(error).__name__
