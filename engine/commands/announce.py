"""Says that a server answers once it does: a process beside it, which ends with the announcement or with the server.

Run as a program: `python -m caiflow.engine.commands.announce PID URL TEXT`. Knows nothing of what is served.
"""

from __future__ import annotations

import os
import sys
import time
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from caiflow.engine.display.terminal import say

POLL_S = 0.5


def announce(pid: int, url: str, text: str) -> bool:
    """Print the text on standard error as soon as the URL answers; return False where the process `pid` ended before."""
    while _lives(pid):
        if _answers(url):
            say(text, file=sys.stderr, flush=True)
            return True
        time.sleep(POLL_S)
    return False


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=10):
            return True
    except HTTPError:
        return True  # it wants a key, say
    except (URLError, OSError):
        return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    announce(int(sys.argv[1]), sys.argv[2], sys.argv[3])
