"""One Ray for the runs of all test processes of a session: each connects, works and leaves as on any cluster.

`python -m support.shared_ray PIPE` starts it, prints its address, and ends it once nobody has the named pipe open for writing
any more, however the last one ended. Tests of how Ray starts and ends, and of kills, take a Ray of their own.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parents[1]


@contextmanager
def shared_ray(folder: Path) -> Iterator[str]:
    """Yield the address of the Ray that is shared through `folder`, started by whoever comes first; all know its token.

    Who started it waits for its end: it leaves no process behind, and neither does the last of the others.
    """
    holder, told = None, folder / "ray.address"
    with (folder / "ray.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        pipe = _listening(folder / "ray.pipe")
        if pipe is None:
            holder, pipe = _hold(folder / "ray.pipe", told)
    try:
        yield told.read_text(encoding="utf-8")
    finally:
        os.close(pipe)
        if holder is not None:
            holder.wait()


def _listening(path: Path) -> int | None:
    """Open a named pipe for writing; return None where nobody reads it."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def _hold(path: Path, told: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a Ray; return the process that holds it, and the pipe that has it go on."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    command = [sys.executable, "-m", __spec__.name, str(path)]
    holder = subprocess.Popen(command, cwd=TESTS, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    pipe = os.open(path, os.O_WRONLY)  # waits until it listens
    assert holder.stdout is not None
    address = holder.stdout.readline().strip()
    assert address, "Ray didn't start"
    told.write_text(address, encoding="utf-8")
    return holder, pipe


def main() -> None:
    """Hold a Ray until nobody needs it any more."""
    with Path(sys.argv[1]).open(encoding="utf-8") as pipe:
        from caiflow.engine.run.on_ray.cluster import Cluster

        cluster = Cluster()
        cluster.start()
        import ray

        print(ray.get_runtime_context().gcs_address, flush=True)
        pipe.read()
    cluster.close()


if __name__ == "__main__":
    main()
