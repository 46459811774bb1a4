"""One Ray for the runs of a test process: a child holds it, so that a run connects, works and leaves as on any cluster.

`python -m support.shared_ray` starts it, prints its address, and ends it when its standard input closes, however its parent
ended. Tests of how Ray starts and ends, and of kills, take a Ray of their own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parents[1]


@contextmanager
def shared_ray() -> Iterator[str]:
    """Yield the address of a Ray of this machine; this process's runs know its token."""
    command = [sys.executable, "-m", __spec__.name]
    with subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        address = holder.stdout.readline().strip()
        assert address, "Ray didn't start"
        yield address
        holder.stdin.close()


def main() -> None:
    """Hold a Ray until nobody listens any more."""
    from caiflow.engine.run.cluster import Cluster

    cluster = Cluster()
    cluster.start()
    import ray

    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    cluster.close()


if __name__ == "__main__":
    main()
