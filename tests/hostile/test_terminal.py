"""A stranger's specs, data and names print no character that steers the terminal, whatever command shows them."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path

import pytest

from caiflow.engine.cli import COMMANDS
from caiflow.engine.display.console import Console
from caiflow.engine.display.progress import JsonLines, LiveGraph, PlainLines
from caiflow.engine.display.terminal import escaped
from support.commands import command_here
from support.kills import without_token
from support.once import made_once

SOURCES = Path(__file__).parents[2]
STEERING = {
    "screen": "\x1b[2J", "title": "\x1b]0;owned\x07", "link": "\x1b]8;;http://x.invalid\x07a\x1b]8;;\x07", "c1": "\x9b2J",
    "bell": "\x07", "return": "\rforged", "back": "\x08\x08", "delete": "\x7f", "bidi": "\u202egnp.exe", "isolate": "\u2066x",
    "separator": "\u2028x", "unseen": "\U000e0041",
}  # fmt: skip
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
ALL = "".join(STEERING.values())
ID = STEERING["screen"] + STEERING["c1"] + STEERING["bidi"]  # ids have no white space


def raw(text: str) -> list[str]:
    """Return the steering characters in a text, but those of the tool's own styling."""
    return RAW.findall(re.sub(r"\x1b\[[\d;]*m", "", text)) if "\x1b[2J" not in text else ["\x1b[2J"]


def given(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**without_token(), "CAIFLOW_HOME": str(place / "home"), "COLUMNS": "140"}
    done = command_here(place, *arguments, **environment)
    assert raw(done.stdout) == raw(done.stderr) == [], arguments
    return done


@pytest.mark.parametrize("text", [*STEERING.values(), "\ud800"], ids=[*STEERING, "surrogate"])
def test_an_escaped_text_is_printable_and_json_stays_what_it_says(text: str) -> None:
    shown = escaped(f"a{text}b")
    assert raw(shown) == []
    assert shown.encode()
    assert json.loads(escaped(json.dumps(f"a{text}b", ensure_ascii=False))) == f"a{text}b"


def test_what_people_write_is_shown_as_it_is() -> None:
    text = "Größe\t日本語\n👩‍👩‍👧 עברית naïve — ✓"
    assert escaped(text) == text


def test_a_console_escapes_what_is_printed_and_keeps_its_own_style() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, color_system="standard")
    console.print(f"[bold]{ALL}[/nothing]", style="red")
    assert "\x1b[31m" in out.getvalue()
    assert "[bold]" in out.getvalue()
    assert raw(out.getvalue()) == []


# what a spec may say wrongly, each with a hostile text at another place

VALID = {"caiflow": 1, "name": "n", "steps": {"red": {"op": "load", "source": "red.jsonl"}}}


def wrong_specs() -> Iterator[tuple[str, dict[str, object]]]:
    def spec(**changed: object) -> dict[str, object]:
        return {**VALID, **changed}

    load, red = {"op": "load", "source": "red.jsonl"}, VALID["steps"]
    assert isinstance(red, dict)
    for kind, text in STEERING.items():
        yield f"key-{kind}", spec(**{f"x{text}": 1})
        yield f"name-{kind}", spec(name=f"n{text}")
        yield f"step-{kind}", spec(steps={f"s{text}": load})
        yield f"op-{kind}", spec(steps={"s": {"op": f"load{text}"}})
        yield f"source-{kind}", spec(steps={"s": {"op": "load", "source": f"none{text}.jsonl"}})
        yield f"input-{kind}", spec(steps={**red, "f": {"op": "filter", "input": f"red{text}", "drop": ["refusal"]}})
        yield f"where-{kind}", spec(steps={**red, "f": {"op": "filter", "input": "red", "drop": [{"where": f"x{text} > 1"}]}})
        yield f"model-{kind}", spec(models={f"m{text}": {"source": f"s{text}"}})
        yield f"constitution-{kind}", spec(constitution=f"harmless{text}")


@pytest.mark.parametrize(("spec", "kind"), [pytest.param(spec, name, id=name) for name, spec in wrong_specs()])
def test_a_wrong_spec_is_refused_on_one_line_a_problem(spec: dict[str, object], kind: str, tmp_path: Path) -> None:
    (tmp_path / "red.jsonl").write_text('{"prompt": "Hi"}\n')
    (tmp_path / "s.yaml").write_text(json.dumps(spec))  # its escapes are YAML's too
    done = given(tmp_path, "validate", "s.yaml")
    assert done.returncode == 2, kind
    for line in done.stdout.splitlines():
        assert line.startswith("s.yaml:1:"), line
    json.loads(given(tmp_path, "validate", "s.yaml", "--json").stdout)


SPEC = """\
caiflow: 1
name: hostile
constitution: mine.yaml
steps:
  red:   {op: load, source: red.jsonl}
  clean: {op: filter, input: red, drop: [{length: {column: response, max: 400}}]}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Path:
    """Return a folder with two runs of hostile rows, in `first` and `second`."""
    return made_once(tmp_path_factory, "hostile", partial(make_runs, ray_address))


def make_runs(address: str, folder: Path) -> None:
    (folder / "s.yaml").write_text(SPEC)
    principle = {"id": f"p{ID}", "critique": f"Say {ALL}", "revision": f"Do {ALL}"}
    (folder / "mine.yaml").write_text(
        json.dumps({"caiflow_constitution": 1, "name": f"c{ALL}", "description": ALL, "principles": [principle]})
    )
    rows = [
        {
            "uid": f"u{n}{text}",
            "prompt": [{"role": "user", "content": f"Say {text}"}],
            "response": f"It is {text}",
            f"column{ALL}": text,
            f"[/red]{ALL}": "[bold]no markup[/x]",
        }
        for n, text in enumerate(STEERING.values())
    ]
    answer = {"custom_id": f"call{ALL}", "error": {"message": ALL}, "response": {"status_code": 200, "body": {"choices": ALL}}}
    (folder / "answers.jsonl").write_text(f"{json.dumps(answer)}\n{ALL}\n")
    for run in ("first", "second"):
        (folder / "red.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        ran = given(folder, "run", "s.yaml", "--out", run, "--address", address)
        assert ran.returncode == 0, ran.stderr
        rows = [{**row, "response": f"{row['response']}, changed {ALL}"} for row in rows[1:]]


LOOKS = (
    ["validate", "s.yaml"], ["inspect", "s.yaml"], ["inspect", "s.yaml", "--json"],
    ["plan", "s.yaml"], ["plan", "s.yaml", "--json"], ["try", "s.yaml", f"red{ALL}", ALL], ["try", "s.yaml", "clean", ALL],
    ["why", "s.yaml", "red"], ["why", "s.yaml", "clean"], ["why", "s.yaml", "red", "--json"],
    ["why", "s.yaml", f"clean{ALL}"], ["runs"], ["runs", "--json"],
    ["show", "first"], ["show", "first", "--json"], ["show", "first", "clean"], ["show", "first", "clean", "--json"],
    ["show", "first", "red", "--columns", f"c{ALL}"], ["show", "first", f"red{ALL}"], ["show", f"first{ALL}"],
    ["report", "first", "--compare", "second", "--out", f"r{STEERING['bidi']}"],
    ["push", "first", "clean", f"me/x{ALL}", "--dry-run"], ["push", "first", f"red{ALL}", "me/x"],
    ["view", f"none{ALL}"], ["merge", "first", f"red{ALL}", "x"], ["merge", "first", "red", "x"],
    ["tag", "first", f"t{ALL}"], ["tag", "first", "--note", ALL], ["tag", "first"], ["runs"], ["completion", f"b{ALL}"],
    ["gate", "first", "s.yaml"], ["gate", f"first{ALL}", "s.yaml"], ["gate", "first", f"g{ALL}"],
    ["diff", "first", "second"], ["diff", "first", "second", "--json"], ["verify", "first"], ["verify", "first", "--json"],
    ["ctl", "first"], ["ctl", f"first{ALL}"], ["ctl", "first", "budget", "--model", f"m{ALL}", "--max-calls", "3"],
    ["replay", "first"], ["replay", "first", f"red{ALL}"], ["replay", "first", "--share", ALL],
    ["export", "first", f"out{STEERING['bidi']}"], ["gc", "--dry-run"], ["gc", "--dry-run", "--json"],
    ["constitution", "show", "mine.yaml"], ["head", "red.jsonl"], ["head", "red.jsonl", "--json"], ["head", f"none{ALL}"],
    ["constitution", "show", "mine.yaml", "--json"], ["constitution", "check", "mine.yaml"],
    ["constitution", "convert", "mine.yaml"],
    ["constitution", "check", f"none{ALL}"], ["ops", f"loud{ALL}"], ["ops"], ["ops", "filter"], ["specs"], ["schema"],
    ["init", f"recipe{ALL}", "somewhere"], ["serve", "first", f"red{ALL}"], [f"command{ALL}"], ["run", f"none{ALL}.yaml"],
    ["run", "s.yaml", "--set", f"steps.red{ALL}=1"], ["run", "s.yaml", "--profile", f"p{ALL}"],
    ["run", "s.yaml", f"--unknown{ALL}"], ["run", "s.yaml", "--only", f"red{ALL}"],
    ["run", "s.yaml", "--traceback", "--until", ALL],
    ["doctor"], ["submit", "s.yaml", "--store", "x", "--kuberay", "image"], ["submit", f"none{ALL}", "--store", ALL],
    ["submit", "--attach", f"job{ALL}", "--address", f"here{ALL}"],
    ["import", "first", "answers.jsonl"], ["import", "first", "answers.jsonl", "--json"], ["import", "first", f"none{ALL}"],
)  # fmt: skip


@pytest.mark.parametrize("arguments", LOOKS, ids=lambda words: escaped(" ".join(words))[:40])
def test_no_command_prints_what_steers_the_terminal(place: Path, arguments: list[str]) -> None:
    done = given(place, *arguments)
    if "--json" in arguments and done.returncode == 0:
        [json.loads(line) for line in done.stdout.splitlines()] if "clean" in arguments else json.loads(done.stdout)


def test_every_command_is_tried() -> None:
    assert {words[0] for words in LOOKS} >= set(COMMANDS)


def test_a_converted_constitution_says_the_same(place: Path) -> None:
    from caiflow.engine.constitution.load import load_constitution

    (place / "converted.yaml").write_text(given(place, "constitution", "convert", "mine.yaml").stdout)
    before, after = (load_constitution(name, place) for name in ("mine.yaml", "converted.yaml"))
    assert before.principles == after.principles


def test_rows_are_shown_with_what_they_hold(place: Path) -> None:
    shown = given(place, "show", "first", "clean").stdout
    assert "\\u001b[2J" in shown
    assert "[bold]no markup[/x]" in shown
    assert "\\u202egnp.exe" in shown


EVENTS = [
    {"t": 1.0, "event": "run_started", "name": f"n{ALL}", "steps": [{"name": f"s{ALL}", "op": f"load{ALL}", "inputs": []}]},
    {"t": 1.0, "event": "step_started", "step": f"s{ALL}"},
    {"t": 1.0, "event": "engine_ready", "model": f"m{ALL}", "kind": ALL, "seconds": 1.0},
    {"t": 1.0, "event": "log", "step": f"s{ALL}", "text": f"said {ALL}"},
    {"t": 1.0, "event": "lock_compared", "grade": "same", "lock": ALL, "drift": [ALL]},
    {"t": 2.0, "event": "step_progress", "step": f"s{ALL}", "done": 1, "total": 2, "doing": f"asks {ALL}"},
    {"t": 1.0, "event": "entering", "text": ALL},
    {"t": 1.0, "event": "engine_starting", "model": f"m{ALL}"},
    {"t": 2.0, "event": "sample", "step": f"s{ALL}", "texts": {f"a{ALL}": ALL, f"b{ALL}": ALL}, "made": f"b{ALL}"},
    {
        "t": 3.0, "event": "step_done", "step": f"s{ALL}", "status": "failed", "error": f"broke {ALL}",
        "notes": [{"step": f"s{ALL}", "message": f"note {ALL}", "uids": [ALL]}],
    },
]  # fmt: skip


@pytest.mark.parametrize("kind", [PlainLines, JsonLines])
def test_lines_of_a_run_are_escaped(kind: type[PlainLines | JsonLines]) -> None:
    out = io.StringIO()
    shown = kind(out)
    for event in EVENTS:
        shown.handle(event)  # type: ignore[arg-type]
    assert raw(out.getvalue()) == []
    assert len(out.getvalue()) > 100


def test_the_live_view_is_escaped() -> None:
    out = io.StringIO()
    with LiveGraph(Console(file=out, force_terminal=True, width=100)) as live:
        for event in EVENTS:
            live.handle(event)  # type: ignore[arg-type]
    own = re.sub(r"\x1b\[(\?25[lh]|\d*[AK]|[\d;]*m)|\r", "", out.getvalue())  # rich's cursor
    assert RAW.findall(own) == []


def test_an_error_nobody_foresaw_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patched, since no error of this kind is known."""
    from caiflow.engine import cli

    def fail(_given: list[str]) -> int:
        raise RuntimeError(f"broke {ALL}")

    monkeypatch.setattr(cli, "_dispatch", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = io.StringIO()
    with redirect_stderr(said):
        assert cli.main(["run", f"x{ALL}", "--traceback"]) == 1
    assert raw(said.getvalue()) == []
    (log,) = tmp_path.glob("caiflow-error-*.log")
    assert raw(log.read_text(encoding="utf-8")) == []


def test_nothing_is_printed_but_through_the_one_way() -> None:
    found = []
    for path in (*(SOURCES / "engine").rglob("*.py"), *(SOURCES / "operators").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = path.relative_to(SOURCES).as_posix()
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append((name, "print"))
            if isinstance(node, ast.ImportFrom) and (node.module or "") == "rich.console":
                found += [(name, alias.name) for alias in node.names if alias.name == "Console"]
            if isinstance(node, ast.Attribute) and node.attr in ("print_exc", "write") and ast.unparse(node.value) in (
                "traceback", "sys.stdout", "sys.stderr",
            ):  # fmt: skip
                found.append((name, ast.unparse(node)))
    assert sorted(found) == [("engine/display/console.py", "Console"), ("engine/display/terminal.py", "print")]
