"""What a person says of a run: tags to find it by, and a note. Kept in the run's folder, apart from what the run wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from caiflow.engine.errors import CaiflowError
from caiflow.engine.store.disk import write_atomic

FILE = "tags.json"
_TAG = re.compile(r"[\w.:/-]{1,60}")


class Said(NamedTuple):
    """A run's tags, in order of the alphabet, and its note."""

    tags: tuple[str, ...] = ()
    note: str = ""


def said_of(run_dir: Path) -> Said:
    """Return what was said of a run; nothing where nothing was, or where the file can't be read."""
    try:
        found = json.loads((run_dir / FILE).read_bytes())
        return Said(tuple(map(str, found["tags"])), str(found["note"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Said()


def say_of(run_dir: Path, *, add: Collection[str] = (), remove: Collection[str] = (), note: str | None = None) -> Said:
    """Add tags to a run, remove others, set its note unless that is None; return what is said of it now.

    Raises:
        CaiflowError: a tag isn't a word, or one to remove isn't there.
    """
    before = said_of(run_dir)
    for tag in add:
        if not _TAG.fullmatch(tag):
            raise CaiflowError(f"{tag!r} is no tag", "write a word of up to 60 letters, digits and . : / _ -")
    if gone := [tag for tag in remove if tag not in before.tags]:
        raise CaiflowError(f"{run_dir}: it has no tag {gone[0]!r}", f"it has {', '.join(before.tags) or 'none'}")
    now = Said(tuple(sorted({*before.tags, *add} - {*remove})), before.note if note is None else note)
    write_atomic(run_dir / FILE, json.dumps(now._asdict(), ensure_ascii=False, indent=1) + "\n")
    return now
