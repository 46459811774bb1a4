"""RL whose judge is asked while replies are still drawn, beside the same with all questions put once the batch is drawn.

The judge is an HTTP server on loopback, in a process of its own, that answers each call after a fixed time, and is asked so
many at once; the policy is a small model with random weights, whose replies end by chance, after 100 tokens on the mean and 384
at the most. Both ways take turns, of which either goes first in every second. Run `python -m benchmarks.overlap` within tests/;
prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.llm.load import load_engine
from caiflow.engine.operator import StepContext
from caiflow.engine.run.units import TrainUnit
from caiflow.operators.rl import Rl
from caiflow.operators.training.params import RlParams
from support.bad_server import Reply, bad_server, said
from support.small_models import saved, small_model

ENDS = range(100, 104)
"""The tokens, of 400, that end a reply."""
JUDGE = {"model": "m", "opponents": 2, "method": "text", "instruction": "Which reply is kinder?"}
GRADER = {
    "model": "m",
    "question": "{{ response }} Is that kind?",
    "method": "text",
    "replies": {"A": 1, "B": 0},
}
WAYS: dict[str, dict[str, Any]] = {"grader": {"grader": GRADER}, "judge": {"judge": JUDGE}}
HEAD = (
    "asked", "calls a step", "each takes", "asked early", "waited, s a step: early", "afterwards",
    "the rest: early", "afterwards", "CPU: early", "afterwards", "ratio",
)  # fmt: skip


class Took(NamedTuple):
    """Seconds of a training's steps, the part of them that was waited for verdicts once all was drawn, and those of the CPU."""

    seconds: float
    waited: float
    cpu: float
    calls: int
    early: float


def trained(folder: Path, policy: ModelSource, link: LocalLink, way: str, steps: int, *, early: bool) -> Took:
    """Train for some steps; `early` questions are those of caiflow, else none is put before all replies are drawn."""
    from caiflow.operators.training.asked import AskedReward
    from caiflow.operators.training.rollouts import Rollouts

    asked = [f"What of {number} things?" for number in range(4 * steps)]
    saved(folder / "rows", [{"uid": text, "prompt": [{"role": "user", "content": text}]} for text in asked])
    fields = {
        "input": "rows", "model": "base", "algorithm": "grpo", "num_generations": 8, "per_device_train_batch_size": 32,
        "max_steps": steps, "max_completion_length": 384, "max_length": 480, "learning_rate": 1e-5,
        "rewards": {"kind": WAYS[way]},
    }  # fmt: skip
    operator = Rl(RlParams.model_validate(fields), StepContext(seed=5))
    places = [folder / name for name in ("staged", "work", "ledger")]
    for place in places:
        place.mkdir()
    models = {"base": policy, "m": ModelSource("m", "judge", engine="openai")}
    unit = TrainUnit("rl", operator, {"rows": folder / "rows"}, models, places[0], places[1], {"m": [link]}, places[2])
    waits: list[float] = []
    ask = AskedReward.__call__

    async def timed(self: AskedReward, *args: Any, **options: Any) -> list[float]:
        began = time.monotonic()
        found = await ask(self, *args, **options)
        waits.append(time.monotonic() - began)
        return found

    with (
        patch.object(AskedReward, "__call__", timed),
        patch.object(Rollouts, "listener", Rollouts.listener if early else nobody),
    ):
        began = time.process_time()
        found = unit.run(lambda _: None)["rl"]
        cpu_s = time.process_time() - began
    return Took(found.metrics["seconds"], sum(waits), cpu_s, found.counts["calls"], found.metrics["asked_early"])


def nobody(_: Any) -> None:
    """Hear nothing of replies that end."""


@contextmanager
def judging(latency_s: float) -> Iterator[str]:
    """Serve a judge that takes so long for each call in a process of its own; give its address."""
    command = [sys.executable, "-m", "benchmarks.overlap", "--serve", str(latency_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.stdin.close()


def serve(latency_s: float) -> None:
    """Be that process, until nobody is at the other end."""

    def reply(_: dict[str, Any], number: int) -> Reply:
        time.sleep(latency_s)
        return said("A" if number % 2 else "B")

    with bad_server() as server:
        server.reply = reply
        print(server.url, flush=True)
        sys.stdin.read()


def lines(latencies: list[float], steps: int, repeats: int, at_once: int) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each line."""
    for way, latency_s in itertools.product(WAYS, latencies):
        took: dict[bool, list[Took]] = {True: [], False: []}
        with judging(latency_s) as url, tempfile.TemporaryDirectory() as place:
            policy = small_model(Path(place) / "policy")
            settings = Path(policy.path) / "generation_config.json"
            settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": list(ENDS)}))
            options = {"base_url": url, "concurrency": at_once}
            host = EngineHost(lambda told=options: load_engine(ModelSource("m", "judge", engine="openai", options=told)))
            try:
                for turn in range(2 * repeats):
                    early = turn % 4 in (0, 3)
                    folder = Path(place) / str(turn)
                    folder.mkdir()
                    took[early].append(trained(folder, policy, LocalLink(host, str(turn)), way, steps, early=early))
            finally:
                host.close()
        yield way, f"{median(one.calls / steps for one in took[True]):.0f}", f"{latency_s:g} s", *figures(took, steps)


def figures(took: Mapping[bool, Sequence[Took]], steps: int) -> Iterator[str]:
    """Yield what differs; the last one is how many times as long a step is with all questions put afterwards."""
    early, after = (median(one.seconds for one in took[way]) for way in (True, False))
    yield f"{median(one.early for one in took[True]):.0%}"
    for told in (lambda one: one.waited, lambda one: one.seconds - one.waited, lambda one: one.cpu):
        yield from (span([told(one) / steps for one in took[way]]) for way in (True, False))
    yield f"{after / early:.2f}"


def span(values: list[float]) -> str:
    """Return the median, and the least and the most."""
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latencies", type=float, nargs="+", default=[0.2, 1.0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--serve", type=float, help="be the judge, which takes so many seconds a call")
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
        return
    for row in (HEAD, ["---"] * len(HEAD)):
        print(f"| {' | '.join(row)} |")
    for cells in lines(given.latencies, given.steps, given.repeats, given.at_once):
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
