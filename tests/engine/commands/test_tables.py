"""Tables of the commands that explain and look back, as people see them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console, RenderableType

from caiflow.engine.commands import tables
from caiflow.engine.commands.ops import _example
from caiflow.engine.lookback.history import RunLine


def text(*things: RenderableType, width: int = 140) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    for thing in things:
        console.print(thing)
    return console.export_text()


def test_plan_table_counts_rows_and_says_why() -> None:
    step = {"name": "critique", "op": "critique", "state": "partial", "rows": 500, "cached": 459, "to_run": 41, "calls": 41}
    plan = {
        "steps": [{**step, "reason": "41 of 500 rows: principle p07 edited"}],
        "segments": [["a", "b"]],
        "resources": ["no GPU"],
    }
    shown = text(tables.plan_table(plan, {"critique": ()}), *tables.plan_notes(plan))
    for part in ("◐ critique", "459", "principle p07 edited", "41 model calls", "a -> b", "short: no GPU"):
        assert part in shown


def test_a_narrow_terminal_gets_a_plan_without_the_graph() -> None:
    step = {"name": "all", "op": "mix", "state": "run", "rows": 5, "cached": 0, "to_run": 5, "calls": 0, "reason": "never run"}
    plan = {"steps": [step]}
    assert "●  ● all" in text(tables.plan_table(plan, {"all": ()}, 120))
    assert "●  ● all" not in text(tables.plan_table(plan, {"all": ()}, 80))


def test_runs_table_tells_how_long_ago(tmp_path: Path) -> None:
    shown = text(
        tables.runs_table([RunLine("cai", tmp_path, "interrupted", 100.0, None, {"done": 3, "waiting": 1})], now=400.0)
    )
    for part in ("cai", "! interrupted", "3 done, 1 waiting", "5m 00s", str(tmp_path)[:20]):
        assert part in shown


def test_a_trial_is_told_from_a_full_run_in_the_list(tmp_path: Path) -> None:
    runs = [
        RunLine("cai", tmp_path, "done", 100.0, 9.0, {"done": 3}, 0, "--sample 8 --set seed=3"),
        RunLine("cai", tmp_path, "done", 100.0, 9.0, {"done": 3}),
    ]
    lines = text(tables.runs_table(runs, now=400.0)).splitlines()
    assert lines[1].startswith("cai --sample 8 --set seed=3  ✓ done")
    assert lines[2].split()[:2] == ["cai", "✓"]


def test_parameters_are_told_with_types_and_groups() -> None:
    definitions = {"Lora": {"properties": {"rank": {"type": "integer", "default": 16, "description": "Rank."}}}}
    schema = {
        "properties": {
            "op": {"const": "sft"},
            "description": {"type": "string", "default": ""},
            "lora": {"anyOf": [{"$ref": "#/$defs/Lora"}, {"type": "null"}], "default": None, "description": "Adapter."},
            "input": {"type": "string", "x-ref": "rows", "description": "Rows."},
        },
        "required": ["input"],
        "$defs": definitions,
    }
    lines = [line.split() for line in text(tables.parameters_table(schema)).splitlines()[1:]]
    assert [line[0] for line in lines] == ["input", "lora", "rank", "description"]
    assert lines[0][1:] == ["step", "with", "rows", "required", "Rows."]
    assert lines[2][1:] == ["integer", "16", "Rank."]


def test_parameters_have_the_whole_width_of_a_narrow_terminal_and_an_example() -> None:
    from support.commands import command_here

    said = command_here(Path.cwd(), "ops", "judge", COLUMNS="80").stdout
    lines = said.splitlines()
    at = lines.index("swap  true | false = true")
    assert lines[at + 1].startswith("    Whether answers are shown in several orders")
    assert max(map(len, lines)) <= 80
    assert "input  step with rows  required" in [" ".join(line.split(" ")) for line in lines]
    assert "example, of the recipe quickstart:" in said
    assert any(line.startswith("  preference: {op: judge, input: pair, model: base, swap: true") for line in lines)
    assert "parameter" in command_here(Path.cwd(), "ops", "judge", COLUMNS="140").stdout


def test_each_operator_has_an_example_and_its_own_before_a_recipe_s(capsys: pytest.CaptureFixture[str]) -> None:
    from caiflow.engine import registry
    from caiflow.engine.cli import main
    from caiflow.engine.spec.schema import describe

    found = {name: _example(name, describe(name)) for name in registry.names()}
    assert all(found.values())
    own = [yaml.safe_load(step) for said in found.values() if said.startswith(":") for step in said[3:].split("\n\n")]
    assert sorted(name for step in own for name in step) == ["induce", "induce", "probe", "rl"]
    for name, step in (each for one in own for each in one.items()):
        registry.operator(name).params_type.model_validate({field: value for field, value in step.items() if field != "op"})
    assert main(["ops", "rl"]) == 0
    assert "\nexample:\n\n  rl:\n    op: rl\n" in capsys.readouterr().out


def test_settings_of_a_lists_items_and_of_a_mappings_values_are_told() -> None:
    one = {"properties": {"n": {"type": "integer", "default": 8, "description": "Words."}}}
    rule = {"properties": {"leak": {"anyOf": [{"$ref": "#/$defs/One"}, {"type": "null"}]}}}
    properties = {
        "drop": {"type": "array", "items": {"anyOf": [{"enum": ["leak"]}, {"$ref": "#/$defs/Rule"}]}},
        "named": {"type": "object", "additionalProperties": {"$ref": "#/$defs/One"}},
    }
    shown = text(tables.parameters_table({"properties": properties, "$defs": {"One": one, "Rule": rule}}))
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["drop", "leak", "n", "named", "n"]
    assert "mapping to fields below" in shown


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
        ({"enum": ["hard", "soft"]}, "hard | soft"),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "number | none"),
        ({"type": ["string", "array"]}, "text | list"),
        ({}, "any"),
    ],
)
def test_types_in_words(field: dict[str, Any], words: str) -> None:
    assert tables.type_text(field, {}) == words


def test_rows_are_shown_whole_without_escapes_or_markup() -> None:
    row = {
        "uid": "ab",
        "prompt": [{"role": "user", "content": "Hi\x1b[2J"}],
        "response": "[bold]no[/]",
        "p": 0.25,
        "none": None,
    }
    shown = text(tables.row_text(row))
    assert r"user: Hi\u001b[2J" in shown
    assert "[bold]no[/]" in shown
    assert "p  0.25" in shown
    assert "none" not in shown
    assert "\x1b" not in shown


def test_a_row_is_a_card_at_a_terminal_without_what_is_for_other_steps() -> None:
    from caiflow.engine.display.console import Console

    row = {
        "uid": "ab", "prompt": [{"role": "user", "content": "How do I do it?"}], "response": "Take it and run away. " * 6,
        "revision": "Ask for it first.", "revisions": ["Ask for it first."], "few_shot": ["352cc5"], "truncated": False,
        "logprob_a": [0.5, 0.25], "p_chosen": 0.75, "empty": None,
    }  # fmt: skip
    console = Console(width=60, file=io.StringIO(), record=True)
    console.print(*tables.row_card(row, console), sep="\n")
    lines = console.export_text().splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert "revision  Ask for it first." in lines
    assert "p_chosen  0.75" in lines
    assert [line for line in lines if line.startswith(" " * 10 + "run away")] or "Take it and run away." in " ".join(lines)
    assert not [line for line in lines if line.startswith(("revisions", "truncated", "logprob_a", "empty"))]
    assert lines[-1] == "4 more columns with --all"
    every = "\n".join(str(line) for line in tables.row_card(row, console, list(row)))
    assert "logprob_a  [0.5, 0.25]" in every
    assert r"\u001b" in "\n".join(map(str, tables.row_card({"uid": "x", "response": "a\x1b[2Jb"}, console)))


def test_figures_of_two_runs_stand_a_line_each_with_their_intervals() -> None:
    from caiflow.engine.lookback.compare import FigureChange, RunsDiff

    rates = [{"rate": value, "low": value - 0.1, "high": value + 0.1, "n": 40} for value in (0.9, 0.2)]
    near = [{**rates[0], "rate": 0.85}, rates[0]]
    changes = [
        FigureChange("scores", "base.far", *rates, True), FigureChange("scores", "base.near", *near, False),
        FigureChange("tuned", "train_loss", 0.5, None, None),
    ]  # fmt: skip

    def shown(*, every: bool) -> list[list[str]]:
        found = tables.diff_tables(RunsDiff(figures=changes), "A", "B", every=every)
        return [line.split() for table in found for line in text(table).splitlines()]

    far = ["≠", "base.far", "90%", "[80,", "100]", "20%", "[10,", "30]"]
    tuned = [["figures", "of", "tuned"], ["figure", "A", "B"], ["train_loss", "0.5", "none"]]
    title, mark = ["figures", "of", "scores"], ["≠", "the", "intervals", "are", "apart"]
    assert shown(every=True) == [
        title, ["figure", "A", "B"], far, ["base.near", "85%", "[80,", "100]", "90%", "[80,", "100]"], mark, *tuned,
    ]  # fmt: skip
    counted = ["1", "more", "within", "their", "intervals;", "--all", "shows", "them"]
    assert shown(every=False) == [title, ["figure", "A", "B"], far, mark, counted, *tuned]
