"""A hub out of reach stops no plan: what it alone could tell is said to be not checked, and a run fails for it clearly."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from caiflow.engine.commands.tables import plan_notes
from caiflow.engine.errors import PlanError, StepError
from caiflow.engine.llm import hub
from caiflow.engine.plan.components import Resolver
from caiflow.engine.plan.plan import Plan, make_plan
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store

ROWS = "rows: {op: load, source: rows.jsonl}"
PAIRS = "pairs: {op: load, source: pairs.jsonl}"
FAR = "far: {source: org/far}"
KINDS = {
    "model that answers": (FAR, [ROWS, "it: {op: generate, input: rows, model: far}"]),
    "model that is trained": (FAR, [ROWS, "it: {op: sft, input: rows, model: far}"]),
    "reward model to train": (FAR, [PAIRS, "it: {op: reward, input: pairs, model: far}"]),
    "reward model that rewards": (
        f"{FAR}, base: {{source: tiny}}", [ROWS, "it: {op: rl, input: rows, model: base, rewards: {far: 1}}"]
    ),
    "reference": (f"{FAR}, base: {{source: tiny}}", [PAIRS, "it: {op: dpo, input: pairs, model: base, reference: far}"]),
    "measured model": (FAR, [ROWS, "it: {op: evaluate, models: [far], inputs: {harm: rows}}"]),
    "adapter": ("far: {source: tiny, adapter: org/far}", [ROWS, "it: {op: generate, input: rows, model: far}"]),
    "tokenizer": ("far: {source: tiny, tokenizer: org/far}", [ROWS, "it: {op: generate, input: rows, model: far}"]),
    "tokenizer of a server": (
        "far: {source: served, base_url: 'http://127.0.0.1:9/v1', tokenizer: org/far}",
        [ROWS, "it: {op: generate, input: rows, model: far}"],
    ),
}  # fmt: skip


@contextmanager
def out_of_reach(way: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the hub be out of reach in one of the ways that there are."""
    patch.delenv("HF_HUB_OFFLINE", raising=False)
    if way == "offline":
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
        return
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        if way == "silent":
            place.listen(64)  # calls are taken by the system, and never answered
            patch.setattr(hub, "PATIENCE_S", 0.2)  # else the test would wait as long as a user does
        host = "hub.invalid" if way == "unknown name" else f"127.0.0.1:{place.getsockname()[1]}"
        patch.setenv("HF_ENDPOINT", f"http://{host}")
        yield


def spec_of(folder: Path, models: str, steps: list[str]) -> Path:
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Why {n}?", "response": f"{n}."}) + "\n" for n in range(3))
    )
    pairs = ({"prompt": f"Why {n}?", "chosen": f"{n}.", "rejected": "No."} for n in range(3))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    text = f"caiflow: 1\nname: far\nmodels: {{{models}}}\nsteps:\n"
    (folder / "spec.yaml").write_text(text + "".join(f"  {step}\n" for step in steps))
    return folder / "spec.yaml"


def planned(spec: Path) -> Plan:
    return make_plan(load_spec(spec), Store(spec.parent / "home"))


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("way", ["offline", "refused", "unknown name", "silent"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_goes_on_without_a_model(kind: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, steps = KINDS[kind]
    with out_of_reach(way, monkeypatch):
        spec = spec_of(tmp_path, models, [*steps, "last: {op: filter, input: rows, drop: [duplicates]}"])
        if steps[0] == PAIRS:
            spec.write_text(spec.read_text().replace("input: rows", "input: pairs"))
        plan = planned(spec)
        told = {step.name: step for step in plan.steps}
        assert told["it"].reason.endswith("not checked: far, since the hub can't be asked")
        assert told["it"].state == "run"
        assert told["last"].rows == 3, "what doesn't need the model is counted"
        (said,) = plan.unreached
        assert said.startswith("models.far")
        assert "'org/far' is neither a folder, nor in the hub's cache" in said
        assert any(f"not checked: {said}" in str(note) for note in plan_notes(plan.to_json()))
        with pytest.raises(PlanError, match=r"models\.far.*org/far.*nor to be had"):
            Resolver(load_spec(spec), Store(tmp_path / "home")).model("far")


def test_a_row_step_without_its_model_has_the_rows_and_calls_of_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with out_of_reach("offline", monkeypatch):
        more = ["next: {op: revise, input: it, model: far}", "tuned: {op: sft, input: next, model: far}"]
        spec = spec_of(tmp_path, FAR, [*KINDS["model that answers"][1], *more])
        spec.write_text(spec.read_text().replace("models:", "constitution: harmless\nmodels:"))
        told = {step.name: step for step in planned(spec).steps}
    assert (told["it"].rows, told["it"].calls, told["it"].at_most) == (3, 3, False)
    assert (told["next"].rows, told["next"].at_most) == (3, True)
    assert "not checked: far" in told["tuned"].reason
    assert "after next" in told["tuned"].reason


@pytest.mark.parametrize("way", ["offline", "refused", "unknown name", "silent"])
@pytest.mark.parametrize(("fields", "rows"), [("", None), (", sample: 7", 7), (", limit: 5", 5)])
def test_rows_of_a_data_set_are_unknown_or_bounded(
    fields: str, rows: int | None, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with out_of_reach(way, monkeypatch):
        steps = [f"rows: {{op: load, source: org/set{fields}}}", "it: {op: generate, input: rows, model: base}"]
        spec = spec_of(tmp_path, "base: {source: tiny}", steps)
        plan = planned(spec)
        source, answers = plan.steps
        assert (source.rows, source.at_most) == (rows, rows is not None)
        assert (answers.rows, answers.calls, answers.at_most) == (rows, rows, rows is not None)
        assert source.reason == "not checked: rows, since the hub can't be asked"
        (said,) = plan.unreached
        assert said.startswith("rows: no data set org/set in the hub's cache, nor to be had (")
        resolver = Resolver(load_spec(spec), Store(tmp_path / "home"))
        with pytest.raises(StepError, match=r"^rows: no data set org/set in the hub's cache, nor to be had"):
            resolver.settle(resolver.spec.steps["rows"])


def test_validate_says_what_it_could_not_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with out_of_reach("offline", monkeypatch):
        steps = ["rows: {op: load, source: org/set}", "it: {op: generate, input: rows, model: far}"]
        remarks = load_spec(spec_of(tmp_path, FAR, steps)).remarks
    assert [remark.path for remark in remarks] == ["steps.rows.source", "models.far.source"]
    assert all(remark.message.startswith("not checked: ") for remark in remarks)


def test_a_model_named_almost_as_one_that_comes_with_caiflow_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with out_of_reach("offline", monkeypatch):
        steps = [ROWS, "it: {op: generate, input: rows, model: far}"]
        (remark,) = load_spec(spec_of(tmp_path, "far: {source: tinny}", steps)).remarks
    assert (remark.path, remark.hint) == ("models.far.source", "did you mean `tiny`?")


def test_a_gguf_file_that_is_here_isn_t_said_to_be_absent(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    steps = [ROWS, "it: {op: generate, input: rows, model: far}"]
    assert load_spec(spec_of(tmp_path, "far: {source: small.gguf}", steps)).remarks == ()


@contextmanager
def hub_that_says(status: int, text: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a hub answer everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

    patch.delenv("HF_HUB_OFFLINE", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hub_that_says_no_stops_the_plan(status: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(tmp_path, *KINDS[kind])
    with hub_that_says(status, "no", monkeypatch), pytest.raises(PlanError, match=r"models\.far.*nor to be had \(the hub says"):
        planned(spec)


@pytest.mark.parametrize(("status", "text"), [(429, "wait"), (500, ""), (503, "busy"), (200, "<html>sign in here</html>")])
def test_an_answer_that_is_none_says_nothing(status: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_that_says(status, text, monkeypatch):
        assert planned(spec_of(tmp_path, *KINDS["model that answers"])).unreached


def test_a_hub_out_of_reach_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answer = hub._asked
    monkeypatch.setattr(hub, "_asked", lambda *about: asked.append(about[0]) or answer(*about))  # counts, changes nothing
    with out_of_reach("refused", monkeypatch):
        models = ", ".join(f"m{n}: {{source: org/far{n}}}" for n in range(4))
        steps = [
            ROWS,
            *(f"s{n}: {{op: generate, input: rows, model: m{n}}}" for n in range(4)),
            "more: {op: load, source: org/set}",
        ]
        plan = planned(spec_of(tmp_path, models, steps))
    assert len(plan.unreached) == 5
    assert len(asked) == 1
