"""Calls as the requests of a batch API and their answers as a run's, by the real openai client against a server on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.commands.shapes.every import OUTPUTS
from caiflow.engine.llm.host import EngineHost, LocalLink
from caiflow.engine.llm.load import load_engine
from caiflow.engine.plan.components import Resolver
from caiflow.engine.plan.lock import make_lock, write_lock
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.plan.relocate import portable
from caiflow.engine.rows.folder import Rows
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.spending import Account, Spent
from support.batch_endpoint import BatchEndpoint, batch_endpoint
from support.commands import command_here
from support.models_of_runs import TINY
from support.runs_without_ray import AskedLink, carried_out
from support.table_runs import run_tables
from support.vllm_process import ON_A_CPU

HEAD = "caiflow: 1\nname: small\nconstitution: rules.yaml\nmodels: {{m: {{source: m, base_url: '{url}'}}}}\nsteps:\n"
ROWS = "  rows:   {op: load, source: rows.jsonl}\n"
ASKING = (
    "  answer: {op: generate, input: rows, model: m, samples: [{temperature: 0}, {temperature: 1}]}\n"
    "  pair:   {op: judge, input: answer, model: m, swap: true, ties: keep}\n"
)
RULES = {
    "caiflow_constitution": 1, "name": "rules",
    "principles": [{"id": "kind", "critique": "?", "revision": "!", "judge": "Which?"}],
}  # fmt: skip
NUMBER = 6


@pytest.fixture
def server() -> Iterator[BatchEndpoint]:
    with batch_endpoint() as state:
        yield state


@pytest.fixture
def place(tmp_path: Path, server: BatchEndpoint, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of the spec whose rows alone are made."""
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(NUMBER)))
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    spec = tmp_path / "spec.yaml"
    spec.write_text(HEAD.format(url=server.url) + ROWS)
    run_tables(spec, tmp_path / "run", Store())
    write_run(tmp_path, HEAD.format(url=server.url) + ROWS + ASKING)
    return tmp_path


def write_run(place: Path, text: str) -> Resolver:
    """Write a spec, and that of its run."""
    (place / "spec.yaml").write_text(text)
    resolver = Resolver(load_spec(place / "spec.yaml"), Store())
    (place / "run" / "spec.yaml").write_text(portable(resolver.spec))
    write_lock(place / "run", make_lock(resolver))
    return resolver


def asked(place: Path, folder: str) -> tuple[Any, Path]:
    done = command_here(place, "export", "run", folder, "--as", "batch", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    (name,) = [name for name in found["files"] if name.startswith("batch/")]
    return found["waiting"], place / folder / name


def carried(server: BatchEndpoint, requests: Path, out: Path) -> list[str]:
    """Have a batch carried out by the provider's own client; return the files of answers and errors."""
    from openai import OpenAI

    with OpenAI(base_url=server.url, api_key="none", max_retries=0) as client, open(requests, "rb") as file:
        sent = client.files.create(file=file, purpose="batch")
        batch = client.batches.create(input_file_id=sent.id, endpoint="/v1/chat/completions", completion_window="24h")
        assert batch.status in ("completed", "expired"), batch
        names = [name for name in (batch.output_file_id, batch.error_file_id) if name]
        for name in names:
            (out / name).write_bytes(client.files.content(name).content)
    return names


def taken(place: Path, *files: str) -> Any:
    done = command_here(place, "import", "run", *files, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    OUTPUTS["import"].model_validate_json(done.stdout)
    return json.loads(done.stdout)


def test_a_batch_answers_what_a_run_would_ask_and_the_run_pays_for_nothing(place: Path, server: BatchEndpoint) -> None:
    waiting, requests = asked(place, "first")
    assert waiting == [{"step": "answer", "model": "m", "calls": 2 * NUMBER}], "a judge needs the answers first"
    found = taken(place, *carried(server, requests, place))
    assert found["taken"] == {"answer": 2 * NUMBER}
    assert found["waiting"] == [{"step": "pair", "model": "m", "calls": 2 * NUMBER}], "each pair in both orders"
    waiting, requests = asked(place, "second")
    assert waiting == found["waiting"]
    assert taken(place, *carried(server, requests, place))["waiting"] == []
    assert server.calls == 0

    plan = make_plan(load_spec(place / "spec.yaml"), Store())
    answers = next(step for step in plan.steps if step.name == "answer")
    assert (answers.cached, answers.to_run) == (NUMBER, 0)
    link = AskedLink(most=0)
    resolver, _ = carried_out(place / "spec.yaml", Store(), link)
    assert not link.answered

    source = resolver.model("m")
    assert source is not None
    shutil.copytree(place / "home" / "taught", place / "other-home" / "taught")  # asked in the same words
    host = EngineHost(partial(load_engine, source))
    live, _ = carried_out(place / "spec.yaml", Store(place / "other-home"), LocalLink(host))
    host.close()
    assert server.calls == 4 * NUMBER
    assert Rows(resolver.artifacts["pair"].path).pylist() == Rows(live.artifacts["pair"].path).pylist()


def test_batches_go_on_until_enough_rows_passed_and_ask_no_more_than_it_may_take(place: Path, server: BatchEndpoint) -> None:
    rows = [{"prompt": f"Question {n}?", "kind": "good" if n in (0, 3) else "bad"} for n in range(NUMBER)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "spec.yaml").write_text(HEAD.format(url=server.url) + ROWS)
    shutil.rmtree(place / "run")
    run_tables(place / "spec.yaml", place / "run", Store())
    kept = "  kept:   {op: filter, input: answer, drop: [{where: \"kind == 'bad'\"}], until: {accepted: 2}}\n"
    asking = "  answer: {op: generate, input: rows, model: m, sampling: {temperature: 0}}\n"
    write_run(place, HEAD.format(url=server.url) + ROWS + asking + kept)
    rounds = []
    for number in range(NUMBER):
        waiting, requests = asked(place, f"round{number}")
        rounds += [step["calls"] for step in waiting]
        found = taken(place, *carried(server, requests, place))
        if not found["waiting"]:
            break
    link = AskedLink(most=0)
    resolver, _ = carried_out(place / "spec.yaml", Store(), link)
    assert not link.answered
    assert len(Rows(resolver.artifacts["kept"].path).pylist()) == 2
    assert len(Rows(resolver.artifacts["answer"].path).pylist()) == 4, "the second good one is the fourth"
    assert rounds == [2, 3], "as many as are wanted, and then by what passed"


def test_a_talk_of_two_models_goes_on_by_a_turn_a_batch(place: Path, server: BatchEndpoint) -> None:
    head = HEAD.format(url=server.url).replace("models: {", f"models: {{n: {{source: n, base_url: '{server.url}'}}, ")
    talk = "  talk:   {op: converse, input: rows, model: m, turns: 2, end_at: [], user: {model: n}}\n"
    write_run(place, head + ROWS + talk)
    for turn, model in enumerate(["m", "n", "m"]):
        waiting, requests = asked(place, f"round{turn}")
        assert waiting == [{"step": "talk", "model": model, "calls": NUMBER}]
        taken(place, *carried(server, requests, place))
    link = AskedLink(most=0)
    resolver, _ = carried_out(place / "spec.yaml", Store(), link)
    assert not link.answered
    assert {len(row["messages"]) for row in Rows(resolver.artifacts["talk"].path).pylist()} == {4}


JUDGED = "  pair:   {op: judge, input: rows, model: m, swap: true, ties: keep}\n"


def judge_exported(place: Path) -> Path:
    """Write what a judge asks of a server that goes on with turns, and is gone afterwards; return the file of its requests."""
    rows = [{"prompt": f"Question {n}?", "responses": ["I won't help with that.", "Sure."]} for n in range(NUMBER)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with batch_endpoint() as server:
        server.owner = "vllm"
        head = HEAD.format(url=server.url) + ROWS
        (place / "spec.yaml").write_text(head)
        shutil.rmtree(place / "run")
        run_tables(place / "spec.yaml", place / "run", Store())
        write_run(place, head + JUDGED)
        _, requests = asked(place, "first")
    assert all(json.loads(line)["body"]["continue_final_message"] for line in requests.read_text().splitlines())
    return requests


def test_what_a_server_was_to_go_on_with_is_read_so_once_it_is_down(place: Path, server: BatchEndpoint) -> None:
    server.owner = "vllm"
    found = taken(place, *carried(server, judge_exported(place), place))
    assert (found["taken"], found["waiting"]) == ({"pair": 2 * NUMBER}, [])


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.soak
def test_a_judge_is_answered_by_vllms_own_batches_and_the_run_asks_nobody(place: Path) -> None:
    requests, out = judge_exported(place), place / "out.jsonl"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch", "-i", str(requests), "-o", str(out)]
    command += ["--model", str(TINY), "--served-model-name", "m", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "512", "--max-logprobs", "20"]
    variables = {**os.environ, **ON_A_CPU}
    done = subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found = taken(place, "out.jsonl")
    assert (found["taken"], found["waiting"]) == ({"pair": 2 * NUMBER}, [])
    ran = command_here(place, "run", "spec.yaml", "--out", "after", "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    counts = json.loads((place / "after" / "run.json").read_text())["steps"]["pair"]
    assert (counts["status"], counts["rows_out"], counts.get("calls", 0)) == ("done", NUMBER, 0), counts


MEASURED = """\
  scores:
    op: evaluate
    models: [m]
    inputs: {all: rows}
    sampling: {temperature: 0}
    graders: {kind: {model: m, question: "Is this kind? {{ response }}", replies: {A: 1, B: 0}}}
"""


def test_a_measure_asks_by_batches_what_it_would_ask_in_a_run(place: Path, server: BatchEndpoint) -> None:
    capped = f"source: m, base_url: '{server.url}', max_calls: 7, prices: {{prompt: 1, completion: 2}}"
    head = HEAD.format(url=server.url).replace(f"source: m, base_url: '{server.url}'", capped)
    source = write_run(place, head + ROWS + MEASURED).model("m")
    waiting, requests = asked(place, "first")
    assert waiting == [{"step": "scores", "model": "m", "calls": NUMBER}], "who grades needs the answers first"
    assert taken(place, *carried(server, requests, place))["waiting"] == waiting, "as many grades"
    said = command_here(place, "export", "run", "second", "--as", "batch").stdout
    assert f"m: {NUMBER} calls wait, and max_calls leaves 1; `caiflow import` counts" in said
    files = carried(server, place / "second" / "batch" / "m.jsonl", place)
    assert taken(place, *files)["waiting"] == []
    assert taken(place, *files)["taken"] == {}, "an answer counts once"
    assert source is not None
    spent, _ = Account(Path(source.options["spent"])).take(Spent())
    assert spent == Spent(calls=2 * NUMBER, tokens=2 * NUMBER * 10, micros=2 * NUMBER * (7 + 2 * 3))
    assert server.calls == 0


def test_every_line_is_accounted_for_and_what_failed_is_asked_again(place: Path, server: BatchEndpoint) -> None:
    server.fate = lambda n: {1: "expire", 2: "break", 3: "lose"}.get(n, "answer")
    _, requests = asked(place, "first")
    names = carried(server, requests, place)
    output = (place / names[0]).read_text().splitlines()
    stranger = json.loads(output[0]) | {"custom_id": "f" * 32}
    (place / "more.jsonl").write_text("\n".join([output[0], json.dumps(stranger), "{}", "half a li"]))
    found = taken(place, *names, "more.jsonl")
    whole = 2 * NUMBER
    assert found["lines"] == {
        "taken": whole - 3, "failed": 1, "not_carried_out": 1, "not_asked": 1, "doubled": 1, "unreadable": 2,
    }  # fmt: skip
    assert sum(found["lines"].values()) == whole - 1 + 4
    told = "\n".join(found["trouble"])
    for said in ("more.jsonl:3: no line of a batch's answers", "answers 500", "batch_expired"):
        assert said in told
    left = {step["step"]: step["calls"] for step in found["waiting"]}
    assert left == {"answer": 3, "pair": 2 * (NUMBER - 2)}, "the rows that have both answers go on"
    again = taken(place, *names)
    assert again["lines"]["taken"] == 0
    assert again["lines"]["not_asked"] == whole - 3
    said = command_here(place, "import", "run", *names).stdout
    assert "1 lines expired or cancelled" in said
    assert "answer: 3 calls of m wait for answers" in said


def test_what_a_model_here_has_to_answer_first_is_said_with_the_way_to_it(place: Path, server: BatchEndpoint) -> None:
    models = HEAD.replace("'}}}}", "'}}, here: {{source: tiny}}}}").format(url=server.url)
    write_run(place, models + ROWS + MEASURED.replace("models: [m]", "models: [here]"))
    done = command_here(place, "export", "run", "graded", "--as", "batch")
    told = f"no step waits for answers of a served model; scores: here runs here and has {NUMBER} calls to answer first: have a"
    assert told in done.stderr, done.stderr
    write_run(place, models + ROWS + ASKING.replace("rows, model: m", "rows, model: here"))
    done = command_here(place, "export", "run", "judged", "--as", "batch")
    assert f"{2 * NUMBER} calls to answer first: have them answered: caiflow run SPEC --until answer" in done.stderr, (
        done.stderr
    )


def test_where_nothing_waits_the_export_says_what_to_do_and_leaves_no_folder(place: Path, server: BatchEndpoint) -> None:
    (place / "run" / "spec.yaml").write_text((place / "run" / "spec.yaml").read_text().partition("  answer:")[0])
    done = command_here(place, "export", "run", "folder", "--as", "batch")
    assert done.returncode == 1, done.stderr
    assert "no step waits for answers of a served model" in done.stderr
    assert not (place / "folder").exists()
    missing = command_here(place, "import", "run", "no.jsonl")
    assert "no.jsonl: No such file" in missing.stderr
