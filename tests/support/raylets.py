"""Several nodes of Ray on this machine: how a script begins that has a process of its own for them, and what came of it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from typing import Any

from support.kills import without_token
from support.source_tree import ROOT

HERE = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 80 << 20}
"""What all nodes have in common."""


def head(**has: Any) -> Any:
    """Start a Ray with a token of its own, which this process then has, too; return its nodes, of which the head has this."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, connect=False, head_node_args={**HERE, **has})


def carried_out(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Carry out a script among the tests; return what it said, once it went well."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT / "tests",
        env={**without_token(), **variables},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    return done
