"""A run learns how a server wants to be asked, begins anew with that, and what it then makes is found again by plan and run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.llm.load import load_engine
from caiflow.engine.plan.components import Resolver
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.rows.folder import Rows
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from support.bad_server import BadServer, bad_server, said
from support.commands import run_here
from support.runs_without_ray import carried_out

SPEC = """\
caiflow: 1
models: {{served: {{source: "{source}", base_url: "{url}", concurrency: 4, max_calls: 60}}}}
steps:
  rows:   {{op: load, source: rows.jsonl}}
  answer: {{op: generate, input: rows, model: served}}
  rated:  {{op: judge, input: rows, model: served, method: text, constitution: rules.txt}}
"""


@pytest.fixture
def server() -> Iterator[BadServer]:
    with bad_server() as state:
        yield state


def written(folder: Path, server: BadServer, source: str) -> Path:
    rows = [{"prompt": f"Say {word}.", "responses": [f"{word}!", "no"]} for word in ("red", "blue", "tea")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rules.txt").write_text("Be kind.")
    spec = folder / "spec.yaml"
    spec.write_text(SPEC.format(url=server.url, source=source).replace(f'base_url: "{source}", ', ""))
    return spec


def states(spec: Path, home: Path) -> set[str]:
    return {step.state for step in make_plan(load_spec(spec), Store(home)).steps}


def told(out: Path) -> list[str]:
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [event["text"] for event in events if event["event"] == "log"]


@pytest.mark.slow
@pytest.mark.soak
def test_a_refused_field_is_said_once_and_counts_to_what_the_answers_are(
    server: BadServer, tmp_path: Path, ray_address: str
) -> None:
    def reply(body: dict[str, Any], n: int) -> Any:
        named = next((name for name in ("seed", "temperature") if name in body), None)
        error = {"message": f"Unsupported parameter: '{named}'", "param": named}
        return (400, {}, json.dumps({"error": error})) if named else said("(A)")

    server.reply = reply
    spec, home = written(tmp_path, server, "m"), tmp_path / "home"
    first = run_here(ray_address, spec, tmp_path / "one", home)
    assert first["steps"]["answer"]["rows_out"] == 3
    lessons = told(tmp_path / "one")
    assert [sum(f"refuses `{name}`" in lesson for lesson in lessons) for name in ("seed", "temperature")] == [1, 1], lessons
    answered = [call for call in server.calls if not {"seed", "temperature"} & call.keys()]
    assert len(answered) == 3 + 6
    before = len(server.calls)
    assert states(spec, home) == {"cached"}
    second = run_here(ray_address, spec, tmp_path / "two", home)
    assert {step["status"] for step in second["steps"].values()} == {"cached"}
    assert len(server.calls) == before
    lock = json.loads((tmp_path / "one" / "caiflow.lock").read_text())
    assert set(lock["models"]["served"]["without"]) == {"seed", "temperature"}


@pytest.mark.slow
@pytest.mark.soak
def test_another_model_behind_the_same_address_is_asked_anew_and_a_server_that_is_down_is_the_one_it_was(
    server: BadServer, tmp_path: Path, ray_address: str
) -> None:
    server.reply = lambda body, n: said(f"(A), says {body['model']}")
    spec, home = written(tmp_path, server, server.url), tmp_path / "home"
    server.listed = []  # what it lists isn't known before the first call
    assert states(spec, home) == {"run"}
    server.listed = ["old"]
    run_here(ray_address, spec, tmp_path / "one", home)
    assert (states(spec, home), len(server.calls)) == ({"cached"}, 9)
    server.listed = ["new"]
    assert states(spec, home) == {"cached", "run"}
    run_here(ray_address, spec, tmp_path / "two", home)
    assert [call["model"] for call in server.calls] == ["old"] * 9 + ["new"] * 9
    assert json.loads((tmp_path / "two" / "caiflow.lock").read_text())["models"]["served"]["named"] == "new"
    server.listed = []
    assert states(spec, home) == {"cached"}


WAY = """\
caiflow: 1
models: {{served: {{source: m, base_url: "{url}"}}}}
steps:
  rows:   {{op: load, source: rows.jsonl}}
  answer: {{op: generate, input: rows, model: served}}
"""


def by_its_engine(spec: Path, store: Store, sample: int | None = None) -> Resolver:
    source = Resolver(load_spec(spec), store).model("served")
    assert source is not None
    host = EngineHost(partial(load_engine, source))
    try:
        return carried_out(spec, store, LocalLink(host), sample, model="served")[0]
    finally:
        host.close()


def test_a_run_whose_answers_are_kept_works_with_its_server_down(tmp_path: Path) -> None:
    store, spec = Store(tmp_path / "home"), tmp_path / "spec.yaml"
    with bad_server() as server:
        written(tmp_path, server, "m")
        spec.write_text(WAY.format(url=server.url))
        first = by_its_engine(spec, store).artifacts["answer"]
    again = by_its_engine(spec, store, sample=2).artifacts["answer"]
    assert (first.digest != again.digest, Rows(again.path).pylist()) == (True, Rows(first.path).pylist()[:2])
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say green."}\n')
    with pytest.raises(EngineError, match="no server answers at"):
        by_its_engine(spec, store)
