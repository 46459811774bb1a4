"""The real command, in a process of its own where that is the point: exit codes, messages, what is imported and printed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.cli import COMMANDS, main
from caiflow.engine.spec.grammar import ModelEntry
from caiflow.engine.store.journal import read_run
from support.commands import command_here
from support.kills import without_token

HEAVY = ("torch", "transformers", "ray", "pyarrow", "polars", "numpy", "rich", "trl", "vllm", "httpx")
SPEC = """\
caiflow: 1
name: short
steps:
  red:   {op: load, source: red.jsonl}
  clean: {op: filter, input: red, drop: [{length: {column: response, max: 12}}]}
"""
ROWS = [{"prompt": "One?", "response": "short"}, {"prompt": "Two?", "response": "much longer than that"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Path:
    """Return a folder with a small spec, its data, and one finished run in `first`."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "short.yaml").write_text(SPEC)
    (folder / "red.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    ran = caiflow(folder, "run", "short.yaml", "--out", "first", "--address", ray_address)
    assert ran.returncode == 0, ran.stderr
    return folder


def environment(place: Path, **more: str) -> dict[str, str]:
    return {**without_token(), "CAIFLOW_HOME": str(place / "home"), "COLUMNS": "160", **more}


def caiflow(place: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Give the command in this process and return what came of it."""
    return command_here(place, *arguments, **environment(place, **more))


def shown(place: Path, *arguments: str) -> Any:
    done = caiflow(place, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_names_every_command(tmp_path: Path) -> None:
    text = caiflow(tmp_path, "--help").stdout
    assert all(name in text for name in COMMANDS)
    assert "examples:" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: caiflow {command}" in text
    assert "examples:\n  caiflow" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "did you mean `run`"),
        (["run", "short.yaml", "--profle=x"], "did you mean `--profile`"),
        (["run"], "SPEC"),
        (["run", "shrt.yaml"], "did you mean `short.yaml`"),
        (["run", "short.yaml", "--sample", "0"], "no whole number above 0"),
        (["run", "short.yaml", "--until", "claen"], "did you mean `clean`"),
        (["run", "short.yaml", "--set", "steps.clean.inptu=red"], "--set:1:"),
        (["why", "short.yaml", "rde"], "did you mean `red`"),
        (["show", "first", "red", "--offset=-1"], "'-1' is no whole number from 0 on"),
        (["show", "first", "red", "--limit=-1"], "'-1' is no whole number from 0 on"),
        (["runs", "--limit", "0"], "no whole number above 0"),
        (["diff", "first", "first", "--examples=-1"], "'-1' is no whole number from 0 on"),
        (["view", "first", "--port", "99999"], "'99999' is no port, 0 to 65535"),
        (["serve", "first", "base", "--port=-1"], "'-1' is no port, 0 to 65535"),
        (["ops", "fliter"], "did you mean `filter`"),
        (["init", "quickstrat"], "did you mean `quickstart`"),
        ([], "usage: caiflow"),
    ],
)
def test_a_wrong_command_line_exits_2_with_a_hint(place: Path, arguments: list[str], said: str) -> None:
    done = caiflow(place, *arguments)
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_validate_prints_every_problem_with_its_place(place: Path) -> None:
    (place / "wrong.yaml").write_text(SPEC.replace("input: red", "input: rde").replace("name: short", "name: short\nsede: 1"))
    done = caiflow(place, "validate", "wrong.yaml", "short.yaml")
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    assert lines[0].startswith("wrong.yaml:3:1: ")
    assert "seed" in lines[0]
    assert lines[1].startswith("wrong.yaml:6:")
    assert "did you mean `red`" in lines[1]
    assert lines[2] == "short.yaml: ok"
    found = json.loads(caiflow(place, "validate", "wrong.yaml", "--json").stdout)["problems"]
    assert [sorted(problem) for problem in found] == [["col", "file", "hint", "line", "message", "path"]] * 2


def test_validate_says_which_profiles_it_did_not_look_into(place: Path) -> None:
    (place / "profiled.yaml").write_text(SPEC + "profiles:\n  large: {seed: 2}\n  wrong: {sede: 2}\n")
    said = caiflow(place, "validate", "profiled.yaml").stdout
    assert said == "profiled.yaml: ok, without looking into --profile large or wrong\n"
    assert "unknown key `sede`" in caiflow(place, "validate", "profiled.yaml", "--profile", "wrong").stdout


def test_a_folder_of_a_recipe_s_name_does_not_hide_the_recipe(place: Path, tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    done = command_here(tmp_path, "validate", "paper", **environment(place))
    assert (done.returncode, done.stdout.startswith("paper: ok")) == (0, True)


def test_a_missing_spec_is_a_problem_at_its_place(place: Path) -> None:
    (problem,) = json.loads(caiflow(place, "validate", "nowhere.yaml", "--json").stdout)["problems"]
    assert (problem["file"], problem["line"], problem["col"]) == ("nowhere.yaml", 1, 1)


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "short.yaml"], ["run", "--help"], ["specs"]])
def test_quick_commands_import_nothing_heavy(place: Path, arguments: list[str]) -> None:
    code = "import sys\nfrom caiflow.engine.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=place, env=environment(place), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_a_cached_run_starts_neither_ray_nor_torch(place: Path) -> None:
    code = "import sys\nfrom caiflow.engine.cli import main\ncode = main(['run', 'short.yaml', '--out', 'again'])\n"
    code += "print('HEAVY', code, [name for name in ('torch', 'ray', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=environment(place), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "HEAVY 0 []"
    steps = shown(place, "show", "again")["steps"]
    assert {name: step["status"] for name, step in steps.items()} == {"red": "cached", "clean": "cached"}


def test_a_run_leaves_what_the_contract_says(place: Path) -> None:
    run = shown(place, "show", "first")
    assert run["status"] == "done"
    clean = run["steps"]["clean"]
    assert (clean["op"], clean["status"], clean["rows_in"], clean["rows_out"]) == ("filter", "done", 2, 1)
    assert clean["digest"]
    assert {path.name for path in (place / "first").iterdir()} >= {"run.json", "spec.yaml", "events.jsonl", "steps"}


def test_run_prints_its_steps_plainly_without_a_terminal(place: Path) -> None:
    done = caiflow(place, "run", "short.yaml", "--out", "plain")
    assert "clean: cached; 1 rows" in done.stderr
    assert "≡ clean" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_a_run_says_what_was_asked_beside_its_spec(place: Path) -> None:
    done = caiflow(place, "run", "short.yaml", "--set", "description=mine", "--out", "varied")
    assert ", with --set description=mine: varied" in done.stdout
    assert json.loads((place / "varied" / "run.json").read_text())["variant"] == "--set description=mine"
    assert "variant" not in json.loads((place / "first" / "run.json").read_text())
    assert "short --set description=mine" in caiflow(place, "runs").stdout


def test_json_run_prints_events_and_nothing_else(place: Path) -> None:
    done = caiflow(place, "run", "short.yaml", "--out", "events", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "run_started"
    assert events[-1] == events[-1] | {"event": "run_done", "status": "done"}
    assert [json.loads(line) for line in (place / "events/events.jsonl").read_text().splitlines()] == events


def test_default_folder_has_the_specs_name(place: Path) -> None:
    assert caiflow(place, "run", "short.yaml").returncode == 0
    assert [path.name for path in (place / "runs").iterdir()] == ["short"]
    latest = place / "runs" / "short" / "latest"
    assert (latest / "run.json").exists()
    assert shown(place, "show", "runs/short/latest")["status"] == "done"
    assert not (place / "latest").is_symlink(), "a folder that was named isn't pointed at"


def test_whoever_names_no_folder_is_told_which_run_it_was(place: Path) -> None:
    for command in (["show", "last"], ["show", "last", "clean"], ["verify", "short"], ["diff", "last", "first"]):
        done = caiflow(place, *command)
        assert done.returncode == 0, done.stderr
        told = done.stderr.splitlines()
        assert told[0].startswith(f"{command[1]}: ")
        assert (place / told[0].partition(": ")[2] / "run.json").exists()
    assert caiflow(place, "show", "first").stderr == ""


def test_plan_says_what_run_would_do(place: Path) -> None:
    steps = shown(place, "plan", "short.yaml")["steps"]
    assert [(step["name"], step["state"]) for step in steps] == [("red", "cached"), ("clean", "cached")]
    changed = shown(place, "plan", "short.yaml", "--set", "steps.clean.drop=[{length: {column: response, max: 3}}]")["steps"]
    assert [step["state"] for step in changed] == ["cached", "run"]
    assert "≡ red" in caiflow(place, "plan", "short.yaml").stdout


def test_why_names_the_changed_field_with_both_values(place: Path) -> None:
    why = shown(place, "why", "short.yaml", "clean", "--set", "steps.clean.drop=[{length: {column: response, max: 3}}]")
    assert why["state"] == "run"
    assert why["changes"] == [{"component": "params.drop.0.length.max", "old": 12, "new": 3}]


def test_show_pages_through_rows(place: Path) -> None:
    text = caiflow(place, "show", "first", "red", "--offset", "1", "--limit", "1").stdout
    assert "much longer than that" in text
    assert "rows 2 to 2 of 2" in text
    narrow = caiflow(place, "show", "first", "red", COLUMNS="30").stdout
    assert "much longer than that" in narrow  # a pipe has no width at which lines are to be broken
    assert caiflow(place, "show", "first", "red", "--offset", "9").stdout == "none of 2 rows\n"
    row = json.loads(caiflow(place, "show", "first", "clean", "--json", "--columns", "response").stdout)
    assert row == {"response": "short"}
    assert "much longer" in caiflow(place, "show", "first", "clean", "--dropped").stdout
    assert caiflow(place, "show", "first", "clean", "--columns", "responce").returncode == 2


def test_show_into_a_closed_pipe_is_quiet(place: Path) -> None:
    command = f"{sys.executable} -m caiflow.engine.cli show first red | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=place, env=environment(place), capture_output=True, text=True)
    assert "Error" not in done.stderr


def unread(place: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Give a command whose output nobody reads from the beginning, as of `| true`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "caiflow.engine.cli", *arguments]
        shared_ray = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
        variables = {**environment(place), **shared_ray}
        variables.pop("PYTHONUNBUFFERED", None)
        return subprocess.run(
            command, cwd=place, env=variables, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=300
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize("arguments", [["show", "first"], ["show", "first", "red"], ["diff", "first", "first"], ["runs"]])
def test_a_pipe_that_nobody_reads_is_no_failure(place: Path, arguments: list[str]) -> None:
    done = unread(place, *arguments)
    assert (done.returncode, b"Error" in done.stderr) == (0, False)


def test_a_pipe_that_nobody_reads_hides_no_exit_code(place: Path) -> None:
    (place / "wrong.yaml").write_text("caiflow: 1\n")
    assert unread(place, "validate", "wrong.yaml").returncode == 2


def test_a_run_that_nobody_watches_any_more_goes_on_to_its_end(place: Path, ray_address: str) -> None:
    done = unread(place, "run", "short.yaml", "--set", "seed=77", "--json", "--out", "unread", "--address", ray_address)
    assert done.returncode == 0, done.stderr
    assert read_run(place / "unread")["status"] == "done"
    (place / "late.jsonl").write_text('{"prompt": "One?", "response": "short"}\n' * 2000 + "{oops\n")
    broken = ("--set", "steps.red.source=late.jsonl", "--out", "unread_failed", "--address", ray_address)
    assert unread(place, "run", "short.yaml", *broken, "--json").returncode == 1
    assert read_run(place / "unread_failed")["status"] == "failed"


def test_runs_and_diff_look_back(place: Path, ray_address: str) -> None:
    arguments = ("--set", "steps.clean.drop=[{length: {column: response, max: 99}}]", "--out", "longer")
    assert caiflow(place, "run", "short.yaml", *arguments, "--address", ray_address).returncode == 0
    assert "longer" in [Path(run["path"]).name for run in shown(place, "runs")["runs"]]
    diff = shown(place, "diff", "first", "longer")
    assert [change["new"] for change in diff["settings"]] == [99]
    assert [(rows["step"], rows["same"], rows["only_new"]) for rows in diff["rows"]] == [("clean", 1, 1)]
    assert "only new" in caiflow(place, "diff", "first", "longer").stdout


def test_verify_finds_a_changed_file_and_gc_keeps_what_runs_need(place: Path) -> None:
    assert caiflow(place, "verify", "first").returncode == 0
    assert shown(place, "gc", "--dry-run")["things"] == []
    copy = place / "home-copy"
    shutil.copytree(place / "home", copy)
    shutil.copytree(place / "first", place / "moved", symlinks=True)
    for link in (place / "moved" / "steps").iterdir():
        target = copy / link.resolve().relative_to(place / "home")
        link.unlink()
        link.symlink_to(target)
    part = place / "moved" / "steps" / "clean" / "part-00000.parquet"
    part.write_bytes(part.read_bytes() + b"x")
    done = caiflow(place, "verify", "moved", CAIFLOW_HOME=str(copy))
    assert done.returncode == 1
    assert "part-00000.parquet is changed" in done.stdout
    assert "what isn't as it was sealed is made anew by: caiflow run moved/spec.yaml" in done.stdout


def test_an_export_runs_as_locked_elsewhere(place: Path, tmp_path: Path) -> None:
    assert caiflow(place, "export", "first", str(tmp_path / "handover")).returncode == 0
    done = caiflow(tmp_path / "handover", "run", "spec.yaml", "--locked", CAIFLOW_HOME=str(place / "home"))
    assert done.returncode == 0, done.stderr
    assert "same artifacts as" in done.stderr
    drifted = caiflow(
        tmp_path / "handover", "run", "spec.yaml", "--locked", "--set", "seed=5", CAIFLOW_HOME=str(place / "home")
    )
    assert drifted.returncode == 1
    assert "recipe.seed: 0 -> 5" in drifted.stderr


def test_an_unknown_run_exits_1_with_one_line(place: Path) -> None:
    done = caiflow(place, "show", "frist")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "did you mean `first`" in done.stderr


def test_a_failed_step_exits_1_and_is_told(place: Path, ray_address: str) -> None:
    (place / "broken.jsonl").write_text('{"prompt": "One?", "response": "short"}\n' * 2000 + "{oops\n")
    arguments = ("--set", "steps.red.source=broken.jsonl", "--out", "failed", "--address", ray_address)
    done = caiflow(place, "run", str(place / "short.yaml"), *arguments)
    assert done.returncode == 1
    assert "broken.jsonl" in done.stdout
    steps = json.loads((place / "failed" / "run.json").read_text())["steps"]
    assert [step["status"] for step in steps.values()] == ["failed", "skipped"]


def test_an_unwritable_store_is_told_in_one_line(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = caiflow(place, "run", "short.yaml", "--out", "nostore", CAIFLOW_HOME=str(tmp_path / "file" / "home"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "CAIFLOW_HOME" in done.stderr or "can't" in done.stderr


@pytest.mark.soak
def test_ctrl_c_exits_130_and_prints_how_to_go_on(place: Path) -> None:
    command = [sys.executable, "-m", "caiflow.engine.cli", "run", "short.yaml", "--set", "seed=77", "--out", "stopped"]
    with subprocess.Popen(command, cwd=place, env=environment(place), stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        while "started" not in run.stderr.readline():
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        rest = run.stderr.read()
        assert run.wait(timeout=120) == 130
    assert "what is done is kept, and of a training what its last checkpoint has" in rest
    assert "caiflow run short.yaml --set seed=77" in rest
    assert json.loads((place / "stopped" / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.soak
def test_a_second_ctrl_c_prints_how_to_go_on_too(place: Path) -> None:
    code = "import sys, time\nfrom caiflow.engine import cli\nfrom caiflow.engine.run import runner\n"
    code += "def close(self): print('closing', file=sys.stderr, flush=True); time.sleep(60)\n"
    code += "runner._Execution.close = close\nsys.exit(cli.main())"
    command = [sys.executable, "-c", code, "run", "short.yaml", "--set", "seed=78", "--out", "stopped twice"]
    with subprocess.Popen(command, cwd=place, env=environment(place), stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for word in ("started", "closing"):
            while word not in run.stderr.readline():
                assert run.poll() is None
            run.send_signal(signal.SIGINT)
        rest = run.stderr.read()
        assert run.wait(timeout=120) == 130
    assert "To go on: caiflow run short.yaml --set seed=78 --out 'stopped twice'" in rest
    assert "Traceback" not in rest
    assert json.loads((place / "stopped twice" / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("columns", ["40", "80"])
def test_runs_prints_whole_folders_to_a_pipe(place: Path, columns: str) -> None:
    printed = caiflow(place, "runs", COLUMNS=columns).stdout
    for run in shown(place, "runs")["runs"]:
        assert any(line.rstrip().endswith(run["path"]) for line in printed.splitlines())


def test_runs_folds_a_long_folder_in_a_terminal(place: Path) -> None:
    (path,) = [run["path"] for run in shown(place, "runs")["runs"] if run["path"].endswith("/first")]
    code = "import sys\nfrom caiflow.engine import cli\nsys.stdout.isatty = lambda: True\nsys.exit(cli.main(['runs']))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=place, env=environment(place, COLUMNS="60"), capture_output=True, text=True)
    assert path in "".join(line.split()[-1] for line in done.stdout.splitlines() if line.strip())
    assert "…" not in done.stdout


def test_specs_are_listed_and_one_is_copied_ready_to_run(place: Path) -> None:
    recipes = [recipe["name"] for recipe in shown(place, "specs")["recipes"]]
    assert "quickstart" in recipes
    assert caiflow(place, "init", "quickstart", "mine").returncode == 0
    assert caiflow(place / "mine", "validate", "quickstart.yaml").stdout == "quickstart.yaml: ok\n"
    assert "$schema=caiflow.schema.json" in (place / "mine/quickstart.yaml").read_text().splitlines()[0]
    assert json.loads((place / "mine/caiflow.schema.json").read_text())["$schema"].endswith("2020-12/schema")
    again = caiflow(place, "init", "quickstart", "mine")
    assert again.returncode == 1
    assert "overwritten" in again.stderr


def test_schema_and_ops_describe_the_language(place: Path) -> None:
    schema = json.loads(caiflow(place, "schema").stdout)
    ops = [op["op"] for op in shown(place, "ops")["operators"]]
    assert [name for name in ops if f"op:{name}" not in schema["$defs"]] == []
    text = caiflow(place, "ops", "filter").stdout
    assert "input" in text
    assert "step with rows" in text
    models = caiflow(place, "ops", "models").stdout
    assert models.startswith("models\n\nA model that steps may name")
    assert "chat_template" in models
    assert set(shown(place, "ops", "models")["properties"]) == set(ModelEntry.model_fields)


def test_constitution_is_shown_checked_and_converted(place: Path) -> None:
    assert "16 principles" in caiflow(place, "constitution", "check", "harmless").stdout
    converted = caiflow(place, "constitution", "convert", "harmless").stdout
    (place / "copy.yaml").write_text(converted)
    assert "16 principles" in caiflow(place, "constitution", "check", "copy.yaml").stdout
    assert caiflow(place, "constitution", "show", "harmles").returncode == 2


def test_constitutions_are_checked_one_by_one_under_the_names_given(place: Path) -> None:
    (place / "mine.yaml").write_text("- {id: a, rule: be kind}\n")
    (place / "typo.yaml").write_text("- {id: a, rul: be kind}\n")
    done = caiflow(place, "constitution", "check", "mine.yaml", "nosuch.yaml", "./mine.yaml", "typo.yaml")
    assert done.returncode == 2
    assert [line for line in done.stdout.splitlines() if ": ok, 1 principles" in line] == [
        f"{name}: ok, 1 principles, 0 + 0 few-shot examples" for name in ("mine.yaml", "./mine.yaml")
    ]
    missing, typo = done.stderr.splitlines()
    assert missing.startswith("nosuch.yaml:1:1: no constitution 'nosuch.yaml' and no such file")
    assert typo == "typo.yaml:1:11: principle 'a': unknown key `rul`; did you mean `rule`?"
    assert caiflow(place, "constitution", "show", "nosuch.yaml").stderr.startswith("nosuch.yaml:")


def test_an_unforeseen_error_leaves_its_traceback_in_a_file(place: Path) -> None:
    code = "import sys\nfrom caiflow.engine import cli\nfrom caiflow.engine.commands import runs\n"
    code += "def fail(args): raise RuntimeError('a [bug]')\nruns.execute = fail\nsys.exit(cli.main(['runs']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=environment(place), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "caiflow: RuntimeError: a [bug]"
    log = Path(done.stderr.split("the traceback is in ")[1].split(" ")[0])
    assert "in fail" in log.read_text()
    log.unlink()


JUDGED = "caiflow: 1\nmodels: {judge: {source: large, base_url: 'http://api.example.invalid/v1', api_key_env: JUDGE_KEY}}\n"


def test_a_key_is_sent_nowhere_before_its_user_was_asked(place: Path, tmp_path: Path) -> None:
    (place / "judged.yaml").write_text(JUDGED + SPEC.removeprefix("caiflow: 1\n"))
    variables = {"XDG_CONFIG_HOME": str(place / "config"), "JUDGE_KEY": "secret"}
    refused = caiflow(place, "run", "judged.yaml", **variables)
    assert refused.returncode == 1
    assert "JUDGE_KEY would be sent to api.example.invalid" in refused.stderr
    assert "--allow-env JUDGE_KEY=api.example.invalid" in refused.stderr
    assert caiflow(place, "run", "judged.yaml", "--allow-env", "JUDGE_KEY=api.example.invalid", **variables).returncode == 0
    assert in_a_terminal(place, ["run", "judged.yaml"], "n\n", **variables) == 1
    assert in_a_terminal(place, ["run", "judged.yaml"], "\x04", TMPDIR=str(tmp_path), **variables) == 1  # Ctrl-D
    assert not [*tmp_path.glob("caiflow-error-*")]  # which is an answer and no fault
    assert in_a_terminal(place, ["run", "judged.yaml"], "y\n", **variables) == 0
    assert caiflow(place, "run", "judged.yaml", **variables).returncode == 0


def in_a_terminal(place: Path, arguments: list[str], typed: str, **more: str) -> int:
    """Give the command in a terminal of its own, type at its first question, and return its exit code."""
    ours, its = os.openpty()
    command = [sys.executable, "-m", "caiflow.engine.cli", *arguments]
    with subprocess.Popen(command, cwd=place, env=environment(place, **more), stdin=its, stdout=its, stderr=its) as run:
        os.close(its)
        seen = b""
        with suppress(OSError):  # a terminal whose last program has ended gives an error, not an end
            while part := os.read(ours, 4096):
                if b"[y/N]" in (seen := seen + part) and typed:
                    os.write(ours, typed.encode())
                    typed = ""
        os.close(ours)
        return run.wait(timeout=60)
