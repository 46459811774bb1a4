"""Real runs on a real Ray with the bundled model: what a run leaves, what it reuses, how it stops, and what outlives a kill."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.plan.plan import make_plan
from caiflow.engine.rows.folder import Rows
from caiflow.engine.run.runner import run
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.checkpoints import steps_kept
from caiflow.engine.store.journal import read_run, true_status
from support.commands import run_here
from support.events import read_events
from support.kills import ledger_records, leftovers, start, victims
from support.once import made_once

pytestmark = [pytest.mark.slow]

SPEC = """
caiflow: 1
name: small
seed: 5
constitution: harmless
models:
  base: {source: tiny, engine: transformers}
  same: {source: tiny, engine: transformers}
steps:
  prompts:  {op: load, source: "tiny:red_team_train.jsonl", format: hh, limit: ROWS}
  response: {op: generate, input: prompts, model: base, sampling: {max_tokens: 48}}
  critique: {op: critique, input: response, model: same, few_shot: 1, sampling: {max_tokens: 48}}
  revision: {op: revise, input: critique, model: base, sampling: {max_tokens: 48}}
  clean:    {op: filter, input: revision, drop: [unchanged]}
"""


def write_spec(folder: Path, rows: int = 24, extra: str = "", name: str = "small.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(SPEC.replace("ROWS", str(rows)) + extra, encoding="utf-8")
    return path


def finish(spec: Path, out: Path, home: Path, *options: str) -> dict[str, Any]:
    found = start(spec, out, home, *options).wait(timeout=300)
    assert found == 0, (out / "console.txt").read_text()
    return read_run(out)


def wait_for(out: Path, what: Any, timeout_s: float = 120.0) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if (out / "events.jsonl").exists() and any(what(event) for event in read_events(out)):
            return
        time.sleep(0.1)
    raise AssertionError(f"didn't happen within {timeout_s} s: {(out / 'console.txt').read_text()}")


def rows_flow(event: dict[str, Any]) -> bool:
    return event["event"] == "step_progress" and event.get("step") == "response" and event.get("done", 0) > 0


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """One undisturbed run: (spec, run folder, home)."""
    base = made_once(tmp_path_factory, "calm", lambda folder: finish(write_spec(folder), folder / "run", folder / "home"))
    return base / "small.yaml", base / "run", base / "home"


def test_a_run_leaves_what_the_contract_says(calm: tuple[Path, Path, Path]) -> None:
    _, out, _ = calm
    run = read_run(out)
    assert run["status"] == "done"
    assert {name: step["status"] for name, step in run["steps"].items()} == dict.fromkeys(run["steps"], "done")
    assert run["steps"]["revision"]["rows_in"] == 24
    for name in ("response", "critique", "revision"):
        said = [event for event in read_events(out) if event["event"] == "step_done" and event["step"] == name]
        counts = {of: run["steps"][name][of] for of in ("calls", "prompt_tokens", "completion_tokens")}
        assert min(counts.values()) >= 24
        assert counts.items() <= said[0].items()
    assert (out / "caiflow.lock").exists()
    assert (out / "spec.yaml").exists()
    rows = Rows(out / "steps" / "revision").pylist()
    assert len({row["uid"] for row in rows}) == 24
    assert all(row["response"] and row["critique"] and row["revision"] and row["principle"] for row in rows)
    kept, dropped = Rows(out / "steps" / "clean"), Rows(out / "steps" / "clean").dropped()
    assert kept.num_rows + (dropped.num_rows if dropped.files else 0) == 24


def test_each_step_of_a_chain_tells_what_it_waits_for_and_its_own_share_of_the_time(calm: tuple[Path, Path, Path]) -> None:
    _, out, _ = calm
    steps, events = read_run(out)["steps"], list(read_events(out))
    chain = ("response", "critique", "revision")
    took = {event["step"]: event["t"] for event in events if event["event"] == "step_started"}
    wall_s = next(e["t"] for e in events if e["event"] == "step_done" and e["step"] == "revision") - took["response"]
    assert all(steps[name]["seconds"] > 0 for name in chain)
    assert sum(steps[name]["seconds"] for name in chain) < wall_s
    for name in chain:
        told = [event for event in events if event["event"] == "step_progress" and event["step"] == name]
        model = "same" if name == "critique" else "base"
        assert [event["doing"] for event in told if "doing" in event] == [f"waiting for {model}"]
        assert "done" not in told[0]
        assert told[-1]["total"] == 24
    assert any(event.get("tokens_per_second", 0) > 0 for event in events)
    assert "run: starting Ray" in (out / "console.txt").read_text()


def test_equal_models_share_one_engine_loaded_once(calm: tuple[Path, Path, Path]) -> None:
    _, out, _ = calm
    assert [event["event"] for event in read_events(out)].count("engine_ready") == 1


def test_rows_load_with_datasets_alone(calm: tuple[Path, Path, Path]) -> None:
    from datasets import load_dataset

    _, out, _ = calm
    table = load_dataset("parquet", data_dir=str(out / "steps" / "clean"), split="train", cache_dir=str(out / "hf"))
    assert table.num_rows == Rows(out / "steps" / "clean").num_rows


def test_the_second_run_is_cached_and_starts_neither_ray_nor_torch(calm: tuple[Path, Path, Path]) -> None:
    spec, out, home = calm
    code = f"""
import os, sys
os.environ["CAIFLOW_HOME"] = {str(home)!r}
from caiflow.engine.cli import main
code = main(["run", {str(spec)!r}, "--out", {str(out.parent / "again")!r}])
assert not {{"ray", "torch", "transformers", "datasets"}} & set(sys.modules), "imported too much"
sys.exit(code)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
    assert {step["status"] for step in read_run(out.parent / "again")["steps"].values()} == {"cached"}


@pytest.mark.soak
def test_a_damaged_artifact_is_made_anew_without_asking_again(
    calm: tuple[Path, Path, Path], tmp_path: Path, ray_address: str
) -> None:
    spec, out, home = calm
    damaged = shutil.copytree(home, tmp_path / "home")
    kept = Rows(out / "steps/critique").pylist()
    (file,) = (damaged / (out / "steps/critique").resolve().relative_to(home.resolve())).glob("*.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    (ledger,) = (damaged / "ledger").glob("revise-*/*.seg")
    with ledger.open("r+b") as segment:
        segment.seek(200)
        segment.write(b"\0")
    planned = {step.name: step for step in make_plan(load_spec(spec), Store(damaged)).steps}
    assert planned["response"].state == "cached"
    assert "part-00000.parquet has changed" in planned["critique"].reason
    again = run_here(ray_address, spec, tmp_path / "again", damaged)
    assert Rows(tmp_path / "again/steps/critique").pylist() == kept
    assert again["steps"]["critique"]["status"] == "done"
    assert again["steps"]["critique"].get("calls", 0) == 0
    assert Rows(tmp_path / "again/steps/clean").pylist() == Rows(out / "steps/clean").pylist()
    assert again["steps"]["revision"].get("calls", 0) <= 1
    said = [event["text"] for event in read_events(tmp_path / "again") if event["event"] == "log"]
    assert any(text.startswith("critique is made anew: ") for text in said)
    assert any("records in the ledger were damaged" in text for text in said)


@pytest.mark.soak
def test_an_engine_loads_only_where_an_answer_is_not_in_the_ledger(
    calm: tuple[Path, Path, Path], tmp_path: Path, ray_address: str
) -> None:
    _, _, calm_home = calm
    home = shutil.copytree(calm_home, tmp_path / "home")
    scores = "  scores: {op: evaluate, models: [base], inputs: {harmful: prompts}, sampling: {max_tokens: 8}}\n"
    more = '  kind:   {op: load, source: "tiny:helpful_test.jsonl", limit: 4}\n'
    more += scores.replace("harmful: prompts", "harmful: prompts, helpful: kind")

    def engines(name: str, extra: str) -> tuple[int, Any]:
        shutil.rmtree(home / "artifacts", ignore_errors=True)
        run = run_here(ray_address, write_spec(tmp_path / name, extra=extra), tmp_path / name / "run", home)
        assert run["steps"]["revision"].get("calls", 0) == 0
        said = list(read_events(tmp_path / name / "run"))
        events = [event["event"] for event in said]
        assert events.count("engine_starting") == events.count("engine_ready")
        assert any("doing" in event for event in said) == (name == "a"), "only what has no answers yet waits for its model"
        return events.count("engine_ready"), run["steps"]["scores"]

    (first, made), (again, same), (third, grown) = (engines(*one) for one in (("a", scores), ("b", scores), ("c", more)))
    assert (first, again, third) == (1, 0, 1)
    assert (same["calls"], same["reused_calls"]) == (0, made["calls"])
    assert (grown["calls"] > 0, grown["reused_calls"]) == (True, made["calls"])


@pytest.mark.soak
def test_a_trial_on_few_rows_is_reused_by_the_full_run(calm: tuple[Path, Path, Path], tmp_path: Path, ray_address: str) -> None:
    spec, _, _ = calm
    home = tmp_path / "home"
    trial = run_here(ray_address, spec, tmp_path / "trial", home, "--sample", "6")
    assert trial["steps"]["response"]["rows_out"] == 6
    full = run_here(ray_address, spec, tmp_path / "full", home)
    assert (full["steps"]["response"]["cached"], full["steps"]["revision"]["cached"]) == (6, 6)
    assert len(set(ledger_records(home))) == len(list(ledger_records(home)))


@pytest.mark.soak
def test_steps_that_wait_for_room_leave_nothing_where_outputs_are_made(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "Paint?", "response": "Use a brush."}\n' * 4, encoding="utf-8")
    spec = "caiflow: 1\nmodels: {base: {source: tiny}}\nsteps:\n  data: {op: load, source: data.jsonl}\n"
    for number in range(1, 5):  # more than are trained at once
        spec += f"  tuned{number}: {{op: sft, input: data, model: base, max_steps: {number}}}\n"
    (tmp_path / "spec.yaml").write_text(spec, encoding="utf-8")
    run = finish(tmp_path / "spec.yaml", tmp_path / "run", tmp_path / "home")
    assert run["steps"]["tuned4"]["status"] == "done"
    assert not list((tmp_path / "home" / "staging").iterdir())


def test_a_failed_step_skips_what_depends_on_it_and_the_rest_goes_on(
    calm: tuple[Path, Path, Path], tmp_path: Path, ray_address: str
) -> None:
    _, _, home = calm
    broken = tmp_path / "data.jsonl"
    broken.write_text('{"prompt": "a"}\n' * 2000 + '{"prompt": \n', encoding="utf-8")  # beyond what the check looks at
    extra = (
        "  bad:    {op: load, source: data.jsonl}\n"
        "  after:  {op: filter, input: bad, drop: [duplicates]}\n"
        "  other:  {op: filter, input: critique, drop: [duplicates]}\n"
    )
    spec = write_spec(tmp_path, extra=extra)
    run = run_here(ray_address, spec, tmp_path / "run", home, "--traceback", code=1)
    states = {name: step["status"] for name, step in run["steps"].items()}
    assert (states["bad"], states["after"], states["other"], run["status"]) == ("failed", "skipped", "done", "failed")
    assert "data.jsonl:2001" in run["steps"]["bad"]["error"]
    said = (tmp_path / "run" / "console.txt").read_text()
    assert "Traceback" not in said.partition("\nbad:\n")[0]
    assert "Traceback (most recent call last)" in said.partition("\nbad:\n")[2]


def test_a_file_that_went_after_the_check_fails_its_step(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    (tmp_path / "spec.yaml").write_text("caiflow: 1\nsteps: {gone: {op: load, source: data.jsonl}}\n", encoding="utf-8")
    spec = load_spec(tmp_path / "spec.yaml")
    (tmp_path / "data.jsonl").unlink()
    result = run(spec, Store(tmp_path / "home"), tmp_path / "out")
    assert result.exit_code == 1
    gone = read_run(tmp_path / "out")["steps"]["gone"]
    assert gone["status"] == "failed"
    assert gone["error"].startswith(f"can't read {tmp_path / 'data.jsonl'}: No such file or directory")
    assert (tmp_path / "out" / "caiflow.lock").is_file()


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.soak
def test_a_signal_stops_the_run_within_seconds_and_keeps_everything(tmp_path: Path, number: signal.Signals) -> None:
    spec, out, home = write_spec(tmp_path, rows=120), tmp_path / "run", tmp_path / "home"
    driver = start(spec, out, home)
    wait_for(out, rows_flow)
    driver.send_signal(number)
    assert driver.wait(timeout=60) == 130  # five seconds are promised, but not of a busy machine
    assert read_run(out)["status"] == "interrupted"
    assert f"caiflow run {spec}" in (out / "console.txt").read_text().replace("\n", " ")
    assert leftovers(driver.pid) == []
    streamed = [step for step in make_plan(load_spec(spec), Store(home)).steps if step.op in ("generate", "critique", "revise")]
    left = [step for step in streamed if step.to_run]
    assert left, "the run was stopped before its end"
    for step in left:
        assert step.reason == f"{step.to_run} of 120 rows: {'not done yet' if step.cached else 'never run'}"
    done = finish(spec, tmp_path / "next", home)
    assert done["steps"]["response"]["cached"] > 0
    assert done["steps"]["revision"]["rows_out"] == 120


@pytest.mark.soak
@pytest.mark.kill
def test_killed_engines_and_workers_are_replaced_and_lose_nothing(calm: tuple[Path, Path, Path], tmp_path: Path) -> None:
    spec, out, home = write_spec(tmp_path, rows=128), tmp_path / "run", tmp_path / "home"
    driver = start(spec, out, home)
    for kind in ("engine", "worker"):
        wait_for(out, rows_flow)
        for process in victims(driver, kind):
            process.kill()
        time.sleep(2)
    assert driver.wait(timeout=240) == 0, (out / "console.txt").read_text()
    rows = Rows(out / "steps" / "revision").pylist()
    assert len({row["uid"] for row in rows}) == len(rows) == 128
    records = list(ledger_records(home))
    assert len(records) == len(set(records))
    undisturbed = Rows(calm[1] / "steps" / "revision").pylist()
    texts = {row["uid"]: (row["response"], row["critique"], row["revision"]) for row in rows}
    assert all(texts[row["uid"]] == (row["response"], row["critique"], row["revision"]) for row in undisturbed)


@pytest.mark.kill
def test_a_killed_driver_leaves_no_process_and_a_run_seen_as_interrupted(tmp_path: Path, ray_address: str) -> None:
    spec, out, home = write_spec(tmp_path, rows=40), tmp_path / "run", tmp_path / "home"
    driver = start(spec, out, home)
    wait_for(out, rows_flow)
    driver.kill()
    driver.wait()
    until = time.monotonic() + 20
    session = [*Path(tempfile.gettempdir()).glob(f"caiflow-ray-{driver.pid}-*")]
    assert leftovers(driver.pid, within_s=20) == []
    while session[0].exists() and time.monotonic() < until:
        time.sleep(0.2)
    assert not session[0].exists()
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    assert true_status(read_run(out)) == "interrupted"
    done = run_here(ray_address, spec, tmp_path / "next", home)
    assert done["status"] == "done"
    assert done["steps"]["response"]["cached"] > 0


@pytest.mark.soak
def test_two_runs_at_once_on_one_store_both_end_well(calm: tuple[Path, Path, Path], tmp_path: Path) -> None:
    spec, home = write_spec(tmp_path), tmp_path / "home"
    drivers = [start(spec, tmp_path / name, home) for name in ("one", "two")]
    assert [driver.wait(timeout=300) for driver in drivers] == [0, 0]
    rows = [Rows(tmp_path / name / "steps" / "revision").pylist() for name in ("one", "two")]
    assert rows[0] == rows[1] == Rows(calm[1] / "steps" / "revision").pylist()


@pytest.mark.soak
@pytest.mark.kill
@pytest.mark.parametrize(
    ("save_steps", "told"), [(2, r"goes on from its last checkpoint, of step (\d+) or later"), (1000, "begins anew")]
)
def test_a_training_that_is_cut_off_says_what_is_kept_of_it(tmp_path: Path, save_steps: int, told: str) -> None:
    training = "{op: sft, input: answers, model: base, num_train_epochs: 200, logging_steps: 1, save_steps: "
    steps = f'  answers: {{op: load, source: "tiny:helpful_train.jsonl", limit: 64}}\n  tuned: {training}{save_steps}}}\n'
    (tmp_path / "spec.yaml").write_text(f"caiflow: 1\nmodels:\n  base: {{source: tiny}}\nsteps:\n{steps}", encoding="utf-8")
    out, home = tmp_path / "run", tmp_path / "home"
    driver = start(tmp_path / "spec.yaml", out, home)
    wait_for(out, lambda event: event.get("step") == "tuned" and event.get("done", 0) > 4)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=60) == 130
    said = (out / "console.txt").read_text().replace("\n", " ")
    found = re.search(f"tuned: the training {told}", said)
    assert found, said
    (work,) = (path for path in (home / "work").iterdir() if path.is_dir())
    least = int((*found.groups(), "0")[0])
    assert (steps_kept(work) >= least, bool(least)) == (True, save_steps == 2)
    assert "everything" not in said
