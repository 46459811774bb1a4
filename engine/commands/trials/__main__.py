"""The process of one trial: `python -m caiflow.engine.commands.trials MODULE:FUNCTION FD FOLDER`; started by bench.py alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    from caiflow.engine.commands.trials.bench import serve

    body, handle, folder = sys.argv[1:]
    os.set_inheritable(int(handle), False)
    with os.fdopen(int(handle), "w", encoding="utf-8") as out:
        serve(body, Path(folder), out)
