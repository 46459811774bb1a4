"""What may reach a terminal: the one way of printing text, in which no character steers the screen.

Texts come from specs, data, models and servers, which may all be a stranger's. Rich's tables go through `console` beside this.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # what turns the direction of writing, and other ends of lines
    "\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"  # what can't be encoded, and what is there but never seen
)


def escaped(text: str) -> str:
    r"""Return the text with each steering character as JSON writes it (`\u001b`), so that JSON stays what it says."""
    return _STEERING.sub(lambda found: json.dumps(found[0])[1:-1], text)


def say(text: str, *, file: TextIO | None = None, end: str = "\n", flush: bool = False) -> None:
    """Print a text that may be anybody's, on standard output where no file is given."""
    print(escaped(text), file=file, end=end, flush=flush)


@contextmanager
def own_output() -> Iterator[None]:
    """Keep standard output for what is said here: what libraries and processes begun meanwhile print on it goes to the errors.

    A pipe into `jq` then gets nothing but JSON, and is closed with this process, whoever lives on.
    """
    if sys.stdout is not sys.__stdout__ or sys.stdout is None:
        yield  # it is somebody's already
        return
    sys.stdout.flush()
    common, number = sys.stdout, sys.stdout.fileno()
    kept = os.dup(number)
    os.dup2(sys.stderr.fileno(), number)
    sys.stdout = own = os.fdopen(os.dup(kept), "w", encoding=common.encoding, errors=common.errors)
    try:
        yield
    finally:
        sys.stdout = common
        with suppress(OSError):  # what isn't written yet is what was tried in vain: nobody reads it, or the disk is full
            own.close()
        os.dup2(kept, number)
        os.close(kept)
