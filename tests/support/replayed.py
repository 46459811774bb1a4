"""A recorded run shown again as `caiflow run` shows it: `python -m support.replayed EVENTS SECONDS...`.

Shows the run as it was so many seconds after its start, and the next moment for each line on standard input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from caiflow.engine.display.progress import display


def main() -> None:
    """Show it."""
    events = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    for seconds in sys.argv[2:]:
        moment = events[0]["t"] + float(seconds)
        late = time.time() - moment
        with display() as listener:
            for event in events:
                if event["t"] <= moment:
                    listener({**event, "t": event["t"] + late})
            sys.stdin.readline()
        if sys.stderr.isatty() and os.environ["TERM"] != "dumb":
            sys.stderr.write("\x1b[H\x1b[2J")


if __name__ == "__main__":
    main()
