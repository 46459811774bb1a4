"""Displays: a recorded run rendered to a console, to plain lines and to JSON."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caiflow.engine.display.board import Board, clean, duration
from caiflow.engine.display.progress import JsonLines, LiveGraph, PlainLines
from caiflow.engine.display.screen import draw
from caiflow.engine.display.step_graph import lanes
from caiflow.engine.store.journal import Event

STARTED: Event = {
    "t": 100.0,
    "event": "run_started",
    "name": "cai",
    "steps": [
        {"name": "red", "op": "load", "inputs": []},
        {"name": "answer", "op": "generate", "inputs": ["red"]},
        {"name": "tuned", "op": "sft", "kind": "model", "inputs": ["answer"]},
    ],
}
RECORDED: list[Event] = [
    STARTED,
    {"t": 100.1, "event": "step_done", "step": "red", "status": "cached", "rows_out": 1500, "seconds": 0.0},
    {"t": 101.0, "event": "step_started", "step": "answer"},
    {
        "t": 111.0, "event": "step_progress", "step": "answer", "done": 600, "total": 1500, "cached": 100, "failed": 2,
        "tokens_per_second": 312.4, "busy_s": 10.0, "left_s": 18.0,
    },
    {"t": 111.0, "event": "sample", "step": "answer", "made": "response",
     "texts": {"prompt": "How do\nI?", "response": "Take \x1b[31mcare."}},
]  # fmt: skip


def fold(events: list[Event]) -> Board:
    board = Board()
    for event in events:
        board.apply(event)
    return board


def rendered(board: Board, now: float = 111.0, width: int = 110, height: int = 40) -> str:
    from caiflow.engine.display.console import Console

    console = Console(record=True, width=width, height=height, file=io.StringIO(), force_terminal=True)
    graph = lanes({s.name: s.inputs for s in board.steps.values()})
    console.print(draw(board, graph, now, console))
    return console.export_text()


def test_live_view_shows_each_steps_state() -> None:
    lines = rendered(fold(RECORDED)).splitlines()
    assert lines[0].split()[:4] == ["cai", "1/3", "steps", "11s"]
    assert "at least 18s left  312 tokens/s" in lines[0]
    assert lines[1].rstrip() == "at work: answer"
    assert "≡ red" in lines[2]
    assert "1,500" in lines[2]
    for part in ("● answer", "600/1,500", "━", "10s, 18s left", "100 cached, 2 failed, 312 tokens/s"):
        assert part in lines[3]
    assert "· tuned" in lines[4]


def test_for_whom_a_step_waits_is_shown_until_it_gets_on() -> None:
    refused = "http://host has refused 12 calls in a row, for 8 s; it is asked again in 3 s"
    waits: Event = {"t": 112.0, "event": "step_progress", "step": "answer", "done": 600, "total": 1500, "waiting": refused}
    assert f"waits for {refused}" in " ".join(rendered(fold([*RECORDED, waits]), width=220).split())
    out = io.StringIO()
    plain = PlainLines(out)
    for event in [*RECORDED[:-1], {**waits, "t": 130.0}]:
        plain.handle(event)
    assert f"waits for {refused}" in out.getvalue()
    assert "waits for" not in rendered(fold([*RECORDED, waits, RECORDED[3]]), width=220)


def test_latest_sample_is_shown_without_control_characters() -> None:
    text = rendered(fold(RECORDED))
    assert "prompt    How do I?" in text
    assert r"response  Take \u001b[31mcare." in text
    assert "\x1b" not in text


def test_training_shows_loss_and_failure_shows_error() -> None:
    events: list[Event] = [
        STARTED,
        {"t": 101.0, "event": "step_started", "step": "tuned"},
        {"t": 103.0, "event": "step_progress", "step": "tuned", "done": 5, "total": 10, "loss": 1.2345},
        {"t": 104.0, "event": "step_done", "step": "answer", "status": "failed", "error": "answer: no [model]\nlog: x"},
    ]
    text = rendered(fold(events))
    assert "loss 1.234" in text
    assert "✗ answer" in text
    assert "answer: no [model] log: x" in text


def test_training_counts_steps_and_names_its_last_loss() -> None:
    out = io.StringIO()
    lines = PlainLines(out)
    for event in [
        STARTED,
        {"t": 101.0, "event": "step_started", "step": "tuned"},
        {"t": 116.0, "event": "step_progress", "step": "tuned", "done": 2, "total": 2520, "loss": 2.5},
        {"t": 301.0, "event": "step_progress", "step": "tuned", "done": 252, "total": 2520, "loss": 1.5},
        {"t": 401.0, "event": "step_done", "step": "tuned", "status": "done", "seconds": 300.0, "loss": 0.0891},
    ]:
        lines.handle(event)
    assert out.getvalue().splitlines()[2:] == [
        "tuned: running; 2/2,520 steps; loss 2.500; 15s",
        "tuned: running; 252/2,520 steps; loss 1.500; 3m 20s, 27m 58s left",
        "tuned: done; last loss 0.089; 5m 00s",
    ]


def test_the_live_view_counts_a_trainings_steps() -> None:
    events: list[Event] = [
        STARTED,
        {"t": 101.0, "event": "step_progress", "step": "tuned", "done": 2, "total": 2520, "loss": 2.5},
    ]
    (line,) = [line for line in rendered(fold(events)).splitlines() if "● tuned" in line]
    assert "2/2,520 steps" in line
    assert "left" not in line


def test_a_step_whose_rows_are_not_known_yet_says_nothing_of_them() -> None:
    out = io.StringIO()
    lines = PlainLines(out)
    for event in [STARTED, {"t": 115.0, "event": "step_progress", "step": "answer", "done": 0, "total": 0}]:
        lines.handle(event)
    assert out.getvalue().splitlines()[1:] == ["answer: running; 0.0s"]


def test_time_left_runs_down_between_two_events_and_is_gone_where_a_chain_takes_it_back() -> None:
    board = fold(RECORDED)
    answer = board.steps["answer"]
    assert answer.eta_s(now=111.0) == pytest.approx(18.0)
    assert answer.eta_s(now=115.0) == pytest.approx(14.0)
    assert answer.eta_s(now=150.0) == 0.0
    board.apply({"t": 116.0, "event": "step_progress", "step": "answer", "done": 601, "total": 2500, "busy_s": 12.0})
    assert answer.eta_s(now=116.0) is None


def test_a_chain_tells_each_steps_share_of_its_time() -> None:
    board = fold(
        [*RECORDED, {"t": 151.0, "event": "step_progress", "step": "answer", "done": 900, "total": 1500, "busy_s": 14.0}]
    )
    assert board.steps["answer"].elapsed_s(now=151.0) == 14.0


def test_a_step_of_a_chain_that_has_all_its_rows_has_nothing_left() -> None:
    done: Event = {
        "t": 120.0,
        "event": "step_progress",
        "step": "answer",
        "done": 1500,
        "total": 1500,
        "busy_s": 9.0,
        "left_s": 0.0,
    }
    text = rendered(fold([*RECORDED, done]), now=121.0)
    assert "1,500/1,500" in text
    assert "left" not in text


def test_what_a_training_does_before_its_first_steps_is_not_taken_for_their_pace() -> None:
    events: list[Event] = [
        STARTED,
        {"t": 100.0, "event": "step_started", "step": "tuned"},
        {"t": 100.0, "event": "step_progress", "step": "tuned", "doing": "loading"},
    ]
    assert "loading" in rendered(fold(events))
    failed: Event = {"t": 101.0, "event": "step_done", "step": "tuned", "status": "failed", "error": "no rows"}
    assert "loading" not in rendered(fold([*events, failed]))
    events += [
        {"t": 160.0, "event": "step_progress", "step": "tuned", "done": 10, "total": 200, "loss": 2.5},
    ]
    board = fold(events)
    assert board.steps["tuned"].eta_s(now=160.0) is None
    assert "loading" not in rendered(board)
    board.apply({"t": 162.0, "event": "step_progress", "step": "tuned", "done": 20, "total": 200, "loss": 2.0})
    assert board.steps["tuned"].eta_s(now=162.0) == pytest.approx(36.0)


def test_a_training_that_goes_on_from_a_checkpoint_is_foretold_by_the_steps_it_takes_now() -> None:
    events: list[Event] = [
        STARTED,
        {"t": 100.0, "event": "step_progress", "step": "tuned", "done": 150, "total": 200, "loss": 2.5},
        {"t": 120.0, "event": "step_progress", "step": "tuned", "done": 160, "total": 200, "loss": 2.0},
    ]
    assert fold(events).steps["tuned"].eta_s(now=120.0) == pytest.approx(80.0)


def test_a_low_terminal_shows_the_steps_at_work() -> None:
    steps = [{"name": f"s{i}", "op": "load", "inputs": []} for i in range(30)]
    events: list[Event] = [{"t": 0.0, "event": "run_started", "name": "cai", "steps": steps}]
    events += [{"t": 1.0, "event": "step_done", "step": f"s{i}", "status": "done"} for i in range(20)]
    text = rendered(fold(events), height=12)
    assert "s20" in text
    assert "s3 " not in text


def test_plain_lines_say_what_happened_and_no_more() -> None:
    out = io.StringIO()
    lines = PlainLines(out)
    soon: Event = {"t": 102.0, "event": "step_progress", "step": "answer", "done": 1, "total": 1500}
    log: Event = {"t": 112.0, "event": "log", "step": "answer", "text": "2 rows asked again"}
    for event in [*RECORDED[:3], soon, *RECORDED[3:], log]:
        lines.handle(event)
    assert out.getvalue().splitlines() == [
        "run cai: 3 steps",
        "red: cached; 1,500 rows; 0.0s",
        "answer: started (generate)",
        "answer: running; 600/1,500 rows; 100 cached, 2 failed, 312 tokens/s; 10s, 18s left",
        "answer: 2 rows asked again",
    ]


def test_json_lines_are_the_events() -> None:
    out = io.StringIO()
    for event in RECORDED:
        JsonLines(out).handle(event)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == RECORDED


ON_A_FULL_DISK = """
from caiflow.engine.display.progress import display
from caiflow.engine.display.terminal import own_output
with own_output(), display(as_json=True) as show:
    show({"event": "log", "text": "One."})
    show({"event": "log", "text": "Two."})
print("goes on", file=__import__("sys").stderr)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no such file")
def test_a_run_whose_output_has_no_room_says_so_once_and_goes_on() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", ON_A_FULL_DISK], stdout=full, stderr=subprocess.PIPE, text=True)
    said = "caiflow: no more is shown of the run: No space left on device\ngoes on\n"
    assert (done.returncode, done.stderr) == (0, said)


def test_live_graph_draws_in_a_terminal_and_prints_logs_above() -> None:
    from caiflow.engine.display.console import Console

    out = io.StringIO()
    with LiveGraph(Console(file=out, force_terminal=True, width=100, height=30)) as live:
        for event in RECORDED:
            live.handle({**event, "t": event["t"] + time.time() - 111.0})
        live.handle({"t": 1.0, "event": "log", "step": "red", "text": "[bold]3 lines skipped"})
    assert "red: [bold]3 lines skipped" in out.getvalue()
    assert "600/1,500" in out.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.44, "0.4s"), (42.4, "42s"), (185, "3m 05s"), (7800, "2h 10m")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_clean_keeps_words_and_escapes_controls() -> None:
    assert clean("a\tb\n\x07c\u202ed") == r"a b \u0007c\u202ed"


def test_lanes_join_where_steps_read() -> None:
    graph = {"a": [], "b": [], "c": ["a"], "d": ["a", "b"], "e": ["d", "c"]}
    assert list(lanes(graph).values()) == ["●", "│ ●", "├─┼─●", "●─╯ │", "●───╯"]


def test_lanes_never_join_what_has_nothing_to_do_with_each_other() -> None:
    arms = {"data": [], "one": ["data"], "one_tuned": ["one"], "two": [], "two_tuned": ["two"]}
    assert list(lanes(arms).values()) == ["●", "●", "●", "  ●", "  ●"]
