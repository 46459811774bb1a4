"""Tables as people see them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from caiflow.engine.display import report


def text(*things: RenderableType, width: int = 140) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    for thing in things:
        console.print(thing)
    return console.export_text()


def rate(value: float) -> dict[str, Any]:
    return {"rate": value, "n": 40, "low": value - 0.05, "high": value + 0.05}


def test_evaluation_is_a_table_of_models_by_sets_and_checks() -> None:
    rated = {"elo": 123.4, "low": 80.0, "high": 160.0, "n": 40}
    metrics = {
        "models": {
            "base": {"harmful": {"complies": rate(0.95), "duplicate": rate(0)}, "helpful": {"answers": rate(0.9)}},
            "rl_cai": {"harmful": {"complies": rate(0.05), "evades": rate(0.1), "mine": rate(0), "duplicate": rate(0)}},
        },
        "comparisons": {"harmlessness": {"ratings": {"base": {"elo": 0.0}, "rl_cai": rated}, "win_rates": {}}},
        "harmfulness": {"base": {"harmful": {"mean": 3.5, "low": 3.2, "high": 3.8}}},
        "failed": {"base.harmful": 2},
    }
    shown = text(*report.figures(metrics, "scores"))
    lines = [line.split() for line in shown.splitlines()]
    assert lines[1] == ["set", "check", "base", "rl_cai"]
    assert ["harmful", "(40)", "complies", "95%", "[90,", "100]", "5%", "[0,", "10]"] in lines
    assert ["harmful", "(40)", "evades", "10%", "[5,", "15]"] in lines
    assert ["harmlessness", "0", "123", "[80,", "160]"] in lines
    assert ["harmful", "3.50", "[3.20,", "3.80]"] in lines
    assert ["base.harmful", "2"] in lines
    assert any(line[:3] == ["harmful", "(40)", "mine"] for line in lines), "a check of one's own shows, though nothing met it"
    assert "duplicate" not in shown


def test_many_models_stand_one_below_the_other() -> None:
    metrics = {"models": {f"rl@arm{i}": {"harmful": {"complies": rate(i / 10)}} for i in range(6)}}
    lines = [line.split() for line in text(*report.figures(metrics, "scores"), width=60).splitlines()]
    assert lines[:2] == [["scores:", "harmful", "(40)"], ["model", "complies"]]
    assert lines[-2:] == [["rl@arm5", "50%", "[45,", "55]"], ["rl@*", "differ"]]


def test_no_figure_of_many_models_is_without_its_interval_or_cut_at_80_columns() -> None:
    checks = ("no_refusal_phrase", "refusal_phrase", "explained_refusal", "evasive_refusal", "mine")
    arms = [f"rl_cai@without_harassment{i}" for i in range(6)]
    sets = {
        model: {"harmful": {check: {**rate(0.5), "n": 3 + i} for check in checks}} for i, model in enumerate(["base", *arms])
    }
    shown = text(*report.figures({"models": sets}, "scores", 80), width=80)
    assert shown.count("50% [45, 55]") == len(checks) * 7
    assert "…" not in shown
    assert all(check in shown for check in checks)
    assert shown.count("scores: harmful (3 to 9)") == 2


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("number", [2, 3, 4, 7])
def test_every_interval_is_whole_at_any_width(number: int, width: int) -> None:
    def full(low: float) -> dict[str, Any]:
        return {"rate": 1.0, "n": 12, "low": low, "high": 1.0}

    sets = ("harmful", "frightening", "harmless_but_long")
    names = [f"model_{i}" for i in range(number)]
    metrics = {
        "models": {m: {s: {"no_refusal_phrase": full(0.76), "refusal_phrase": full(0.5)} for s in sets} for m in names},
        "perplexity": {s: {m: {"perplexity": 12.25, "low": 11.5, "high": 13.25} for m in names} for s in sets},
    }
    shown = text(*report.figures(metrics, "scores", width), width=width)
    assert shown.count("100% [76, 100]") == shown.count("100% [50, 100]") == shown.count("12.25 [11.50, 13.25]") == 3 * number
    assert "…" not in shown


def test_an_error_is_whole_below_the_steps() -> None:
    step = {
        "op": "load",
        "status": "failed",
        "error": "look at the file " * 20,
        "rows_in": None,
        "rows_out": None,
    }
    run = {"steps": {"red": {**step, "seconds": 1.0, "metrics": {}}}}
    assert "…" in text(report.steps_table(run, 80), width=80)
    assert " ".join(text(*report.failures(run), width=80).split()).count("look at the file") == 20


def test_the_graph_gives_way_where_it_takes_too_much_of_the_width() -> None:
    step = {"op": "load", "status": "done", "rows_in": 1, "rows_out": 1, "seconds": 1.0, "metrics": {}, "inputs": []}
    loads = {f"source{i}": step for i in range(12)}
    run = {"steps": {**loads, "all": {**step, "op": "mix", "inputs": list(loads)}}}
    assert "│" in text(report.steps_table(run, 120), width=120)
    assert "│" not in text(report.steps_table(run, 80), width=80)


def test_arms_are_alike_by_their_answers_to_the_same_prompts_and_never_by_their_intervals() -> None:
    def model(low: float, high: float) -> dict[str, Any]:
        return {"harmful": {"complies": {"rate": (low + high) / 2, "low": low, "high": high, "n": 11}}}

    def said(**paired: float) -> str:
        arms = {"rl@*": {"harmful": {"complies": {"from": "rl@a", "to": "rl@b", "mean": 0.2, "n": 11, **paired}}}}
        shown = text(*report.figures({"models": models, **({"arms": arms} if paired else {})}, "s"))
        return " ".join(shown.splitlines()[-1].split()[9:])

    models = {"rl@a": model(0.1, 0.4), "rl@b": model(0.3, 0.6)}
    assert said() == "", "intervals that overlap say nothing"
    assert said(low=-0.1, high=0.5, unseen=0.5) == "alike ±50"
    assert said(low=0.1, high=0.3, unseen=0.3) == "differ"
    models["rl@b"] = model(0.5, 0.7)
    assert said() == "differ"
    del models["rl@b"]
    assert "rl@*" not in text(*report.figures({"models": models}, "s")), "one arm is compared with nothing"


def test_a_difference_of_arms_in_words() -> None:
    found = {"from": "rl@a", "to": "rl@b", "n": 56, "unseen": 0.3}
    assert report.in_words({**found, "mean": -0.2, "low": -0.3, "high": -0.1}) == (
        "rl@b is 10 to 30 points less than rl@a, prompt by prompt"
    )
    assert report.in_words({**found, "mean": 0.1, "low": -0.1, "high": 0.3}).endswith(
        "56 prompts; up to 30 points aren't ruled out"
    )


def test_steps_table_draws_the_graph_with_status_and_error() -> None:
    step = {"rows_in": None, "rows_out": None, "seconds": None, "metrics": {}}
    run = {
        "steps": {
            "red": {**step, "op": "load", "status": "cached", "rows_out": 1500, "seconds": 9.0, "inputs": []},
            "tuned": {
                **step,
                "op": "sft",
                "status": "done",
                "seconds": 61.0,
                "metrics": {"train_loss": 0.12345},
                "inputs": ["red"],
            },
            "scores": {**step, "op": "evaluate", "status": "failed", "error": "no [model]", "inputs": ["tuned"]},
        }
    }
    shown = text(report.steps_table(run))
    for part in ("≡ red", "1,500", "✓ tuned", "1m 01s", "mean loss 0.1235", "✗ scores", "no [model]"):
        assert part in shown
    assert "9.0s" not in shown


def test_rows_that_were_paid_for_before_are_counted_in_a_step_that_is_done() -> None:
    step = {"op": "generate", "rows_in": 60, "rows_out": 58, "seconds": 3.0, "metrics": {}, "inputs": []}
    steps = {"new": {**step, "status": "done", "cached": 40, "dropped": 2}, "old": {**step, "status": "cached", "cached": 58}}
    shown = text(report.steps_table({"steps": steps})).splitlines()
    assert "40 cached, 2 dropped" in shown[1]
    assert shown[2].rstrip().endswith("cached")
    assert "58 cached" not in shown[2]


def test_the_figures_of_a_judge_stand_beside_its_step() -> None:
    """Under the names that it gives them itself."""
    from caiflow.engine.operator import StepContext
    from caiflow.operators.judge import Judge
    from caiflow.operators.judging.params import JudgeParams

    judge = Judge(JudgeParams(input="pairs", model="base", candidates="responses"), StepContext())
    metrics = judge.metrics([], {"tie": 3})
    step = {"op": "judge", "status": "done", "rows_in": 4, "rows_out": 1, "seconds": 3.0, "metrics": metrics, "inputs": []}
    assert {"ties", "unparsable"} <= metrics.keys() & report.HEADLINES.keys()
    shown = text(report.steps_table({"steps": {"judged": step}}))
    assert f"ties {report.number(metrics['ties'])}, unparsable {report.number(metrics['unparsable'])}" in shown


def test_a_loss_curve_fits_a_line() -> None:
    assert report.sparkline([3.0, 2.0, 1.0, 1.0]) == "█▅▁▁"
    assert len(report.sparkline([float(i) for i in range(1000)])) == 40
    assert report.sparkline([1.0, 1.0]) == "▁▁"


@pytest.mark.parametrize(("value", "shown"), [(1234, "1,234"), (0.123456, "0.1235"), (None, ""), (True, "True"), ("x", "x")])
def test_numbers_are_short(value: Any, shown: str) -> None:
    assert report.number(value) == shown


def test_what_several_arms_share_is_noted_once() -> None:
    noted = [{"step": f"preference@{arm}", "message": "ties: 90%; too many", "uids": [arm]} for arm in ("one", "two")]
    own = {"step": "preference@two", "message": "flips: 50%; a coin", "uids": ["x"]}
    said = [told.plain for told in report.notes_text({"notes": [*noted, own]})]
    assert said == ["▲ preference in one, two: ties: 90%; too many", "▲ preference@two flips: 50%; a coin (rows x)"]
    (alone,) = report.notes_text({"notes": [*noted, own]}, "preference@one")
    assert alone.plain == "▲ preference@one ties: 90%; too many (rows one)"
