"""The report of a run: what it says, and that nothing in it is a stranger's to steer."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.display.report import figure, leaves
from caiflow.engine.lookback.opened import Run
from caiflow.engine.lookback.report.content import _rates, content
from caiflow.engine.lookback.report.page import page
from support.commands import command_here
from support.made_runs import made_run, plain_rows

HOSTILE = "</script><script>window.hurt=1</script><img src=x onerror='window.hurt=2'>\x1b[2J\u202e@STYLE@"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(made_run(home, tmp_path_factory.mktemp("runs") / "one", plain_rows(40)))


def data(text: str, name: str) -> Any:
    (block,) = re.findall(f'<script type="text/plain" id="{name}">([A-Za-z0-9+/=]*)</script>', text)
    return json.loads(gzip.decompress(base64.b64decode(block)))


def test_steps_figures_curves_and_notes_are_in_it(run: Run) -> None:
    said = content(run)
    assert [(step["name"], step["status"], step["rows_out"]) for step in said["steps"]][4:6] == [
        ("clean", "done", 30),
        ("judged", "done", 8),
    ]
    (found,) = said["figures"]
    first = found["rates"][0]
    assert (first["set"], first["check"], [rate["model"] for rate in first["rates"]]) == (
        "harmful", "no_refusal_phrase", ["base", "tuned"],
    )  # fmt: skip
    assert first["rates"][1] == {"model": "tuned", "rate": 0.1, "low": 0.0, "high": 0.2, "n": 40}
    assert "not yet help" in first["means"]
    assert ["harmful (40)", "no_refusal_phrase", "90% [80, 100]", "10% [0, 20]"] in found["tables"][0]["rows"]
    assert [(curve["step"], [series["name"] for series in curve["series"]]) for curve in said["curves"]] == [
        ("tuned", ["loss", "reward", "kl"])
    ]
    assert [note["step"] for note in said["notes"]] == ["judged"]
    (health,) = said["health"]
    assert (health["measure"], health["value"], health["rows"], health["bound"]) == ("order_flips", "0.5", "4 of 8", "0.4")


def test_marks_that_no_model_has_take_no_room_and_arms_have_their_words() -> None:
    rate = {"rate": 0.0, "low": 0.0, "high": 0.1, "n": 40}
    told = {"from": "m@a", "to": "m@b", "mean": 0.0, "n": 40, "low": -0.1, "high": 0.1, "unseen": 0.1}
    models = {f"m@{arm}": {"harmful": {"mine": rate, "boilerplate": rate, "truncated": {**rate, "rate": 0.1}}} for arm in "ab"}
    found = list(_rates({"models": models, "arms": {"m@*": {"harmful": {"mine": told}}}}))
    assert [one["check"] for one in found] == ["mine", "truncated"]
    assert found[0]["arms"] == {"m@*": "no difference shows on 40 prompts; up to 10 points aren't ruled out"}


def test_each_principle_has_what_it_drew_changed_and_dropped_and_its_flips(run: Run) -> None:
    kind, honest = content(run)["principles"]
    assert (kind["id"], kind["text"]["rule"]) == ("kind", "Be kind.")
    assert (kind["drawn"], kind["revised"], kind["changed"], kind["dropped"]) == (20, 20, 10, {"unchanged": 10})
    assert (honest["drawn"], honest["changed"], honest["dropped"]) == (20, 20, {})
    assert (kind["judged"], kind["flips"]) == (8, 4), "those whose option shown first won in both orders"
    assert kind["examples"][0]["before"].startswith("First take")
    assert kind["examples"][0]["after"].startswith("Please take")


def test_the_page_asks_nothing_of_anybody_and_holds_the_rows(run: Run) -> None:
    text = page(run)
    tables = data(text, "content")["tables"]
    assert [(table["step"], table["kind"], table["rows"], table["of"]) for table in tables][-3:] == [
        ("clean", "rows", 30, 30), ("clean", "dropped", 10, 10), ("judged", "rows", 8, 8),
    ]  # fmt: skip
    assert data(text, "table-0")["uid"][:2] == ["00000000", "00000001"]
    shell = re.sub(r'<script type="text/plain".*?</script>', "", text)
    assert len(shell) < 1_000_000
    assert not re.search(r"(?:src|href)=[\"'](?!data:,)", shell)
    assert re.findall(r"https?://[^\s\"']+", shell) == ["http://www.w3.org/2000/svg"]
    assert "default-src 'none'" in shell
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", shell)


def test_hostile_names_and_rows_never_become_markup(home: Path, tmp_path: Path) -> None:
    rows = [{**row, "prompt": [{"role": "user", "content": HOSTILE}], "critique": HOSTILE} for row in plain_rows(4)]
    text = page(Run(made_run(home, tmp_path / "run", rows, name=HOSTILE)))
    assert text.count("</script>") == text.count("<script")
    assert "window.hurt=1</script>" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert data(text, "table-2")["critique"][0] == HOSTILE


def test_a_name_like_that_of_a_figure_is_no_figure() -> None:
    values = {"steps": {"rate": {"op": "load"}, "mean": {"op": "mix", "n": 3}}, "score": {"rate": 0.5, "low": 0.4, "high": 0.6}}
    assert {name: figure(value) for name, value in leaves(values)} == {
        "steps.rate.op": "load", "steps.mean.op": "mix", "steps.mean.n": "3", "score": "50% [40, 60]",
    }  # fmt: skip


def test_votes_over_a_list_flip_where_the_orders_have_other_favourites() -> None:
    from caiflow.engine.lookback.report.principles import _favourites

    votes = [
        {"principle": "kind", "shown": [0, 1, 2], "shares": [0.6, 0.3, 0.1]},
        {"principle": "kind", "shown": [2, 1, 0], "shares": [0.5, 0.2, 0.3]},
        {"principle": "honest", "shown": [1, 0, 2], "shares": [0.4, 0.4, 0.2]},
    ]
    assert _favourites({"votes": json.dumps(votes)}) == {"kind": {0, 2}}
    assert _favourites({"principles": ["kind"], "p_a": [0.5, 0.9]}) == {"kind": {1}}
    assert _favourites({"principles": ["kind", "blunt"], "p_a": [0.9, 0.8]}) == {"kind": set(), "blunt": set()}, "one order"


def test_what_an_author_should_know_of_a_principle_is_said() -> None:
    from caiflow.engine.lookback.report.principles import _judged, _remarks, _Work

    work = {"unused": _Work(), "idle": _Work(drawn=12, revised=12)}
    for number in range(12):
        blunt = [0.2, 0.8] if number else [0.9, 0.1]
        _judged({"principles": ["kind", "blunt", "fair"], "p_a": [0.9, 0.1, *blunt, 0.9, 0.9]}, work)
    told = {name: [*_remarks(one)] for name, one in work.items()}
    assert told == {
        "unused": ["never drawn"],
        "idle": ["never changed an answer, of 12 revised"],
        "kind": ["prefers the other answer than blunt on 11 of 12 pairs"],
        "blunt": ["prefers the other answer than kind on 11 of 12 pairs"],
        "fair": [],
    }


def test_more_rows_than_asked_for_are_counted_not_held(run: Run) -> None:
    (head, *_) = data(page(run, limit=3), "content")["tables"]
    assert (head["rows"], head["of"]) == (3, 40)


def test_two_runs_stand_side_by_side(run: Run, home: Path, tmp_path: Path) -> None:
    rows = [{**row, "revision": f"{row['revision']} Good luck."} for row in plain_rows(40)]
    other = Run(made_run(home, tmp_path / "run", rows, rate=0.6))
    said = data(page(run, other), "content")
    changed = {diff["step"]: diff["changed"] for diff in said["diff"]["rows"]}
    assert (changed["revisions"], changed["clean"]) == (40, 30)
    assert "other" in [table["run"] for table in said["tables"]]
    assert said["other"]["figures"][0]["rates"][0]["rates"][1]["rate"] == 0.6


def test_the_command_writes_the_file_and_says_where(run: Run, home: Path, tmp_path: Path) -> None:
    done = command_here(tmp_path, "report", str(run.path), "--out", "one.html", CAIFLOW_HOME=str(home))
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "wrote one.html")
    assert (tmp_path / "one.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_run_whose_artifacts_are_gone_still_has_its_report(home: Path, tmp_path: Path) -> None:
    found = Run(made_run(home, tmp_path / "run", plain_rows(4)))
    for link in (found.path / "steps").iterdir():
        link.unlink()
        link.symlink_to(tmp_path / "nowhere")
    record = json.loads((found.path / "run.json").read_text())
    for step in record["steps"].values():
        step["digest"] = None
    (found.path / "run.json").write_text(json.dumps(record))
    said = data(page(found), "content")
    assert (len(said["run"]["steps"]), said["tables"], said["run"]["figures"]) == (8, [], [])
