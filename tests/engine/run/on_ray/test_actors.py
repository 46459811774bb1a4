"""What Ray's processes do, without Ray: what a worker tells while it works."""

from __future__ import annotations

import sys
import threading

from caiflow.engine.run.llms import Report
from caiflow.engine.run.on_ray.actors import Worker
from caiflow.engine.run.units import StepResult

EVENTS = 100_000


class Telling:
    """A unit that does nothing but tell."""

    def run(self, report: Report) -> dict[str, StepResult]:
        for number in range(EVENTS):
            report({"number": number})
        return {}


def test_no_event_is_lost_between_two_polls() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that the threads meet wherever they can
    try:
        worker = Worker()
        work = threading.Thread(target=worker.run, args=(Telling(),))
        work.start()
        polled = []
        while work.is_alive():
            polled += worker.poll()
        polled += worker.poll()
    finally:
        sys.setswitchinterval(before)
    assert [event["number"] for event in polled] == list(range(EVENTS))
