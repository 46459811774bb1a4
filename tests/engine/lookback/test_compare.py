"""Two runs compared: settings, prompts, rows joined by uid, flipped judgements, figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from caiflow.engine import registry
from caiflow.engine.lookback.compare import (
    ABSENT,
    EXCERPT,
    Change,
    OneSided,
    RowExample,
    RowsDiff,
    RunsDiff,
    changes,
    compare,
    excerpt,
    figure_changes,
    rows_diff,
)
from caiflow.engine.rows.folder import RowsWriter
from caiflow.engine.store.journal import Journal
from support.small_operators import Ask

Rows = list[dict[str, Any]]


class Pick(Ask):
    """Say which of two answers is better."""

    name = "pick"
    chooses = True


OPS = {"preference": "judge"}


def write_run(run_dir: Path, rows: dict[str, Rows], *, spec: str, components: dict[str, Any], figures: dict[str, Any]) -> Path:
    """Write the folder of a finished run with these steps."""
    with Journal(run_dir) as journal:
        steps = [{"name": name, "op": OPS.get(name, "x")} for name in (*rows, "scores")]
        journal.emit("run_started", name="cai", steps=steps)
        for name, content in rows.items():
            with RowsWriter(run_dir / "steps" / name) as writer:
                writer.write_rows(content)
            journal.emit("step_done", step=name, status="done", rows_out=len(content))
        (run_dir / "steps" / "scores").mkdir()
        (run_dir / "steps" / "scores" / "metrics.json").write_text(json.dumps(figures))
        journal.emit("step_done", step="scores", status="done")
        journal.emit("run_done", status="done")
    (run_dir / "spec.yaml").write_text(spec)
    (run_dir / "components.json").write_text(json.dumps(components))
    return run_dir


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    pair = {"prompt": [{"role": "user", "content": "Q"}]}
    old = write_run(
        tmp_path / "old",
        {
            "answer": [{"uid": "a", "response": "one"}, {"uid": "b", "response": "two"}, {"uid": "c", "response": "three"}],
            "preference": [
                {"uid": "a", **pair, "chosen": "x", "rejected": "y", "p_chosen": 0.9},
                {"uid": "b", **pair, "chosen": "x", "rejected": "y", "p_chosen": 0.8},
                {"uid": "c", **pair, "chosen": "x", "rejected": "y", "p_chosen": 0.7},
            ],
        },
        spec="seed: 1\nsteps: {sft: {learning_rate: 0.1}}\n",
        components={"answer": {"uses.prompt": "old text", "principles.p1": "d1", "seed": 1}},
        figures={"models": {"base": {"harmful": {"complies": {"rate": 1.0}}}}},
    )
    new = write_run(
        tmp_path / "new",
        {
            "answer": [{"uid": "b", "response": "2"}, {"uid": "a", "response": "one"}, {"uid": "d", "response": "four"}],
            "preference": [
                {"uid": "a", **pair, "chosen": "y", "rejected": "x", "p_chosen": 0.6},
                {"uid": "b", **pair, "chosen": "x", "rejected": "y", "p_chosen": 0.8},
                {"uid": "c", **pair, "chosen": "z", "rejected": "y", "p_chosen": 0.7},
            ],
        },
        spec="seed: 2\nsteps: {sft: {learning_rate: 0.1, epochs: 3}}\n",
        components={"answer": {"uses.prompt": "new text", "principles.p1": "d2", "seed": 2}},
        figures={"models": {"base": {"harmful": {"complies": {"rate": 0.5}}}}},
    )
    return old, new


def test_settings_prompts_and_figures_that_differ(runs: tuple[Path, Path]) -> None:
    diff = compare(*runs)
    assert list(diff.settings) == [Change("seed", 1, 2), Change("steps.sft.epochs", ABSENT, 3)]
    assert [change.path for change in diff.prompts] == ["answer.uses.prompt", "answer.principles.p1"]
    assert list(diff.metrics) == [Change("scores.models.base.harmful.complies.rate", 1.0, 0.5)]


def test_an_edited_principle_is_shown_once_by_the_text_that_changed(runs: tuple[Path, Path]) -> None:
    old = {"id": "p1", "critique": "Say where it is unkind.", "judge": "Which is kinder?"}
    new = {**old, "critique": "Say where it is rude."}
    example, another = {"a": "x", "b": "y"}, {"a": "x", "b": "z"}
    for run, principle, examples in zip(runs, (old, new), ([example], [another]), strict=True):
        name = "d1" if principle is old else "d2"
        components = {"principles.p1": name, "few_shot": f"f{name}"}
        extra = {"principles.p2": "d3"} if principle is new else {}
        (run / "components.json").write_text(json.dumps({"answer": components, "preference": {**components, **extra}}))
        (run / "texts.json").write_text(json.dumps({name: principle, f"f{name}": examples, "d3": {"id": "p2"}}))
    assert list(compare(*runs).prompts) == [
        Change("principles.p1.critique", "Say where it is unkind.", "Say where it is rude."),
        Change("few_shot[0].b", "y", "z"),
        Change("principles.p2", ABSENT, {"id": "p2"}),
    ]


def test_a_setting_that_shows_in_what_a_step_uses_is_no_prompt(runs: tuple[Path, Path]) -> None:
    for run, seed in zip(runs, (1, 2), strict=True):
        (run / "components.json").write_text(json.dumps({"answer": {"seed": seed, "uses.seed": seed}}))
    assert compare(*runs).prompts == ()


def test_rows_are_joined_by_uid_whatever_their_order(runs: tuple[Path, Path]) -> None:
    answer = compare(*runs).rows[0]
    assert (answer.step, answer.same, answer.changed, answer.only_old, answer.only_new) == ("answer", 1, 1, 1, 1)
    assert answer.columns == {"response": 1}
    assert [(e.uid, e.old, e.new) for e in answer.examples] == [("b", "two", "2")]


def test_flips_count_only_the_same_two_answers(runs: tuple[Path, Path]) -> None:
    preference = compare(*runs).rows[1]
    assert (preference.pairs, preference.flips) == (2, 1)


def test_a_tie_that_was_kept_has_no_winner_to_change() -> None:
    """Of a tie either answer may be called the chosen one; only the second pair was decided in both runs."""

    def judged(p_chosen: list[float | None], *, turned: bool) -> pl.DataFrame:
        sides = ["one"] * 4, ["other"] * 4
        chosen, rejected = reversed(sides) if turned else sides
        return pl.DataFrame({"uid": list("abcd"), "chosen": chosen, "rejected": rejected, "p_chosen": p_chosen})

    old, new = judged([0.5, 0.9, 0.8, 0.5], turned=False), judged([0.9, 0.6, 0.5, 0.5], turned=True)
    diff = rows_diff("judged", old, new)
    assert (diff.pairs, diff.flips) == (4, 1)


def set_step(run_dir: Path, step: str, **fields: Any) -> None:
    """Change what run.json says of a step."""
    run = json.loads((run_dir / "run.json").read_text())
    run["steps"][step] |= fields
    (run_dir / "run.json").write_text(json.dumps(run))


@pytest.mark.parametrize(
    ("op", "inputs", "judges"),
    [
        ("critique", ["pairs"], False),
        ("load", [], False),
        ("gone", ["answer"], True),
        ("gone", ["pairs"], False),
        ("pick", ["pairs"], True),
        ("judge", ["pairs"], True),
    ],
)
def test_only_a_step_that_chooses_answers_has_flips(runs: tuple[Path, Path], op: str, inputs: list[str], judges: bool) -> None:
    for run in runs:
        set_step(run, "preference", op=op, inputs=inputs)
        (run / "steps" / "pairs").symlink_to("preference")
    with registry.extra(Pick):
        preference = compare(*runs).rows[1]
    assert (preference.pairs, preference.flips) == ((2, 1) if judges else (None, None))


def test_a_step_that_one_run_alone_made_is_named_and_not_compared(runs: tuple[Path, Path]) -> None:
    set_step(runs[1], "answer", status="failed")
    set_step(runs[0], "scores", status="waiting")
    (runs[1] / "components.json").write_text("{}")
    diff = compare(*runs)
    assert diff.one_sided == (OneSided("answer", "old", "failed"), OneSided("scores", "new", "not run"))
    assert [rows.step for rows in diff.rows] == ["preference"]
    assert diff.prompts == ()
    assert diff.metrics == ()


def test_a_step_that_one_run_alone_made_takes_one_line(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from caiflow.engine.cli import main

    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "home"))
    set_step(runs[1], "answer", status="failed")
    assert main(["diff", *map(str, runs)]) == 0
    printed = capsys.readouterr().out
    assert "step answer: only in A (failed in B)\n" in printed
    assert "answer.uses" not in printed


TEXT = (
    "Critique the assistant's last response: point out anything that plans, encourages or excuses {} to other people, and why."
)


def test_an_excerpt_shows_the_part_that_differs() -> None:
    old, new = excerpt(TEXT.format("harm"), TEXT.format("damage"), EXCERPT)
    assert "excuses harm to" in old
    assert "excuses damage to" in new
    assert all(len(text) <= EXCERPT and text.startswith("...") for text in (old, new))
    assert excerpt(TEXT, TEXT + " Be brief.", EXCERPT)[1].endswith("Be brief.")


@pytest.mark.parametrize("place", [0, 5, 40, 79, 80, 81, 200, 399])
@pytest.mark.parametrize("space", ["", " "])
def test_an_excerpt_differs_wherever_the_texts_do(place: int, space: str) -> None:
    text = f"abcdefghi{space or 'j'}" * 40
    edited = f"{text[:place]}#{text[place + 1 :]}"
    old, new = excerpt(text, edited, EXCERPT)
    assert "#" in new
    assert old != new
    assert max(len(old), len(new)) <= EXCERPT


def test_texts_that_differ_by_what_is_not_seen_are_told_apart() -> None:
    assert excerpt("a b", "a\nb", EXCERPT) == ('"a b"', '"a\\nb"')


def test_long_values_and_rows_are_cut_to_where_they_differ() -> None:
    long = [TEXT.format(word) * 3 for word in ("harm", "damage")]
    rows = RowsDiff("s", 0, 1, 0, 0, {}, examples=[RowExample("a", "response", *long)])
    cut = RunsDiff(prompts=[Change("p", *long), Change("n", 1, 2)], rows=[rows]).excerpts()
    assert "damage" in cut.prompts[0].new
    assert cut.prompts[1] == Change("n", 1, 2)
    assert "damage" in cut.rows[0].examples[0].new


def test_conversations_with_the_same_end_are_shown_whole() -> None:
    import polars as pl

    old, new = (
        pl.DataFrame({"uid": ["a"], "prompt": [[{"role": "user", "content": word}, {"role": "user", "content": "End"}]]})
        for word in ("one", "two")
    )
    (example,) = rows_diff("s", old, new).examples
    assert "one" in example.old
    assert "two" in example.new


def test_a_text_that_several_columns_have_is_shown_once() -> None:
    import polars as pl

    old, new = (
        pl.DataFrame({"uid": ["a"], "revision": [w], "revisions": [[w]], "messages": [[{"role": "assistant", "content": w}]]})
        for w in ("one", "two")
    )
    diff = rows_diff("s", old, new)
    assert (diff.columns, [(e.column, e.old, e.new) for e in diff.examples]) == (
        {"revision": 1, "revisions": 1, "messages": 1},
        [("revision", "one", "two")],
    )


def test_a_run_is_like_itself(runs: tuple[Path, Path]) -> None:
    diff = compare(runs[0], runs[0])
    assert not any((diff.settings, diff.prompts, diff.rows, diff.metrics))


def test_doubled_uids_are_paired_in_order() -> None:
    import polars as pl

    old = pl.DataFrame({"uid": ["a", "a"], "text": ["1", "2"]})
    new = pl.DataFrame({"uid": ["a", "a"], "text": ["1", "3"]})
    diff = rows_diff("s", old, new)
    assert (diff.same, diff.changed) == (1, 1)


def test_nulls_and_new_types_are_differences_only_where_they_differ() -> None:
    import polars as pl

    old = pl.DataFrame({"uid": ["a", "b"], "p": [None, 1]}, schema={"uid": pl.String, "p": pl.Int64})
    new = pl.DataFrame({"uid": ["a", "b"], "p": [None, 1.5]})
    assert rows_diff("s", old, new).columns == {"p": 1}
    assert rows_diff("s", old, old).columns == {}


def test_lists_are_compared_item_by_item() -> None:
    assert list(changes({"a": [1, 2]}, {"a": [1, 3, 4]})) == [Change("a[1]", 2, 3), Change("a[2]", ABSENT, 4)]


def test_the_report_shows_it_all(runs: tuple[Path, Path]) -> None:
    from rich.console import Console

    from caiflow.engine.commands.tables import diff_tables

    console = Console(record=True, width=160, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in diff_tables(compare(*runs), "old", "new"):
        console.print(table)
    text = console.export_text()
    figures = ("figures of scores", "models.base.harmful.complies")
    for part in ("steps.sft.epochs", "old text", "1 of 2", "response 1", "two", *figures):
        assert part in text


def test_notes_that_came_went_or_changed_are_a_difference(tmp_path: Path) -> None:
    def noted(name: str, *notes: tuple[str, str]) -> Path:
        with Journal(tmp_path / name) as journal:
            journal.emit("run_started", name="cai", steps=[{"name": "pair", "op": "generate"}])
            found = [{"step": "pair", "measure": measure, "message": message, "uids": []} for measure, message in notes]
            journal.emit("step_done", step="pair", status="done", notes=found)
            journal.emit("run_done", status="done")
        return tmp_path / name

    old = noted("old", ("truncated", "cut: 30%"), ("circles", "in circles: 20%"), ("empty", "empty: 6%"))
    new = noted("new", ("truncated", "cut: 60%"), ("copies_prompt", "copies: 9%"), ("empty", "empty: 6%"))
    diff = compare(old, new)
    assert {(change.path, change.old, change.new) for change in diff.notes} == {
        ("pair.truncated", "cut: 30%", "cut: 60%"),
        ("pair.circles", "in circles: 20%", ABSENT),
        ("pair.copies_prompt", ABSENT, "copies: 9%"),
    }
    assert len(diff.as_json()["notes"]) == 3


def test_a_figure_with_its_interval_is_one_change_and_those_apart_come_first() -> None:
    def rate(value: float, half: float = 0.1) -> dict[str, float]:
        return {"rate": value, "low": value - half, "high": value + half, "n": 40}

    old = {"scores": {"models": {"base": {"set": {"near": rate(0.5), "far": rate(0.9), "same": rate(0.3)}}}, "seconds": 1}}
    new = {"scores": {"models": {"base": {"set": {"near": rate(0.55), "far": rate(0.2), "same": rate(0.3)}}}, "seconds": 9}}
    found = list(figure_changes({**old, "tuned": {"train_loss": 0.5}}, {**new, "tuned": {"train_loss": 0.4}}))
    assert [(one.step, one.name, one.apart) for one in found] == [
        ("scores", "models.base.set.far", True),
        ("scores", "models.base.set.near", False),
        ("tuned", "train_loss", None),
    ]
    assert (found[0].old, found[0].new) == (rate(0.9), rate(0.2))


def test_touching_intervals_are_not_apart_and_a_figure_of_one_run_alone_has_nothing_to_overlap() -> None:
    ends = ((0.1, 0.0, 0.2), (0.3, 0.2, 0.4))
    touching = [{"s": {"f": {"rate": rate, "low": low, "high": high}}} for rate, low, high in ends]
    assert [one.apart for one in figure_changes(*touching)] == [False]
    (gone,) = figure_changes(touching[0], {"s": {}})
    assert (gone.new, gone.apart) == (None, None)
