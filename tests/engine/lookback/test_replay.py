"""`caiflow replay`: a model that is swapped behind a local server is seen, and nothing that is answered is kept."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.commands.shapes.looking import Replay
from caiflow.engine.errors import CaiflowError
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.llm.load import load_engine
from caiflow.engine.lookback.replay import as_shown, replay
from caiflow.engine.plan.components import Resolver
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from support.bad_server import BadServer, bad_server, said
from support.commands import command_here
from support.generators import Generator
from support.runs_without_ray import carried_out, write_spec

ROWS = 100


FIRST: dict[str, str] = {}
"""What the server answered while the run went on, by what it was asked."""


def answering(generator: Generator, noise: int, told: dict[str, str] | None = None) -> Any:
    """Return a server's way to answer: with words of its own for each question, drawn anew by each `noise`."""

    def reply(body: dict[str, Any], number: int) -> Any:
        asked = json.dumps(body["messages"])
        text = generator(sum(map(ord, asked)), random.Random(f"{noise}:{asked}"))
        return said((told if told is not None else {}).setdefault(asked, text))

    return reply


@pytest.fixture(scope="module")
def server() -> Iterator[BadServer]:
    with bad_server() as state:
        yield state


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, server: BadServer) -> Path:
    """A run of 100 rows through two steps that the server answered, the first with words drawn anew by each call."""
    place = tmp_path_factory.mktemp("place")
    spec = write_spec(place, [f"How do I make thing {number}?" for number in range(ROWS)], ["Is it kind?", "Is it true?"])
    spec.write_text(spec.read_text().replace("http://127.0.0.1:9/v1", server.url))
    server.reply = answering(Generator(), 1, FIRST)
    store = Store(place / "home")
    source = Resolver(load_spec(spec), store).model("m")
    assert source is not None
    with closing(EngineHost(partial(load_engine, source))) as host:
        resolver, _ = carried_out(spec, store, LocalLink(host))  # type: ignore[arg-type]
    run_dir = place / "run"
    (run_dir / "spec.yaml").write_text(spec.read_text().replace("rows.jsonl", str(place / "rows.jsonl")).replace(
        "rules.yaml", str(place / "rules.yaml")))  # fmt: skip
    (run_dir / "steps").mkdir()
    steps = {}
    for name, artifact in resolver.artifacts.items():
        (run_dir / "steps" / name).symlink_to(artifact.path)
        steps[name] = {"op": resolver.spec.steps[name].op, "digest": artifact.digest, "status": "done"}
    (run_dir / "run.json").write_text(json.dumps({"name": "small", "status": "done", "steps": steps}))
    return run_dir


def replayed(run: Path, *steps: str, share: float = 1.0) -> Any:
    return replay(
        Resolver(load_spec(run / "spec.yaml", allowed=[run.parent]), Store(run.parent / "home")), run, steps, share, 0
    )


def ledger(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (run.parent / "home" / "ledger").rglob("*.seg")}


def test_the_same_model_is_alike_and_another_one_is_seen(run: Path, server: BadServer) -> None:
    before = ledger(run)
    assert before
    server.reply = answering(Generator(), 7)
    same = replayed(run)
    assert [(one.step, one.asked, one.same, one.verdict) for one in same] == [
        ("answer", ROWS, 0, "alike"), ("critique", ROWS, 0, "alike"),
    ]  # fmt: skip
    server.reply = answering(Generator(preferring=0.6), 3)
    (swapped,) = replayed(run, "answer")
    assert (swapped.verdict, swapped.drifted) == ("drifted", True)
    assert swapped.p <= 0.05
    assert "this isn't the same model" in next(as_shown([swapped]))
    kept, new = (swapped.examples[0][side]["response"] for side in ("kept", "new"))
    assert kept != new
    assert ledger(run) == before, "what is asked again isn't kept"


def test_a_share_of_the_rows_is_drawn_and_too_few_tell_nothing(run: Path, server: BadServer) -> None:
    server.reply = answering(Generator(preferring=0.6), 4)
    asked = len(server.calls)
    (found,) = replayed(run, "answer", share=0.05)
    assert (found.asked, found.verdict, len(server.calls) - asked) == (5, "few", 5)


def test_a_server_that_is_gone_and_steps_that_ask_nobody(run: Path, server: BadServer) -> None:
    server.reply = lambda body, n: (400, {}, '{"error": {"message": "no such model"}}')
    (found,) = replayed(run, "answer", share=0.02)
    assert (found.verdict, found.failed, found.p) == ("failed", 2, None)
    assert "no such model" in found.error
    with pytest.raises(CaiflowError, match="rows: it asks no model row by row; name one of answer, critique"):
        replayed(run, "rows")


def test_the_same_words_are_the_same_bit_for_bit_and_a_swap_ends_with_1(run: Path, server: BadServer) -> None:
    server.reply = answering(Generator(), 5, FIRST)
    home = str(run.parent / "home")
    call = ["replay", str(run), "answer", "--share", "30%", "--allow-path", str(run.parent)]
    done = command_here(run.parent, *call, "--json", CAIFLOW_HOME=home)
    found = Replay.model_validate_json(done.stdout).steps[0]
    assert (done.returncode, found.asked, found.same, found.verdict) == (0, 30, 30, "same"), done.stderr
    server.reply = answering(Generator(preferring=3), 6)
    assert command_here(run.parent, *call, CAIFLOW_HOME=home).returncode == 1
    wrong = command_here(run.parent, "replay", str(run), "--share", "0%", CAIFLOW_HOME=home)
    assert (wrong.returncode, "above 0% and at most 100%" in wrong.stderr) == (2, True)
