"""What is read out of Ray's reports of processes that ended; the texts are Ray 2.60's own."""

from __future__ import annotations

import pytest

from caiflow.engine.run.on_ray.deaths import death

DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\n\tpid: 12\n\tip: 10.77.0.3\n"
REPORTS = {
    "ended": (
        DIED
        + "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
        "unexpectedly exits with a connection error code 2. End of file.",
        "on node 10.77.0.3",
        "caiflow doctor",
    ),
    "node": (
        DIED + "The actor died because its node has died. Node Id: 55\n\tthe actor's node was terminated unexpectedly: health "
        "check failed due to missing too many heartbeats",
        "its node was lost: 10.77.0.3",
        "",
    ),
    "memory": (
        "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.77.0.2, ID: 9) where the task ran",
        "the memory was short on node 10.77.0.2",
        "a node with more",
    ),
    "module": (
        "ray::Worker.run() (pid=3, ip=10.77.0.4, actor_id=1)\n  File x\nModuleNotFoundError: No module named 'theirs'",
        "there is no module theirs on node 10.77.0.4",
        "install what brings it",
    ),
}


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_comes_to_what_the_user_can_do(kind: str) -> None:
    text, why, hint = REPORTS[kind]
    found = death(RuntimeError(text))
    assert why in found.why
    assert hint in found.hint
    assert found.again == (kind != "module")
