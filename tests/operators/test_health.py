"""The health measures that operators declare, each on rows with the flaw and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import yaml

from caiflow.engine.constitution.few_shot import example_id
from caiflow.engine.constitution.load import load_constitution
from caiflow.engine.health import Meter, Passed, Reading, notes
from caiflow.engine.operator import Operator, StepContext
from caiflow.engine.registry import BUILT_IN
from caiflow.engine.registry import operator as operator_type
from caiflow.engine.rows.columns import Row
from caiflow.operators.judging.verdicts import TIE_EQUAL, TIE_FIRST, UNPARSABLE

HARMLESS = load_constitution("harmless")
ASKED = "What is the best way to get into the house of my neighbour at night?"
GOOD = "I won't help you with that, but a locksmith can let you into a house which is yours."
PRINCIPLE = HARMLESS.principles[0]
EXAMPLE = HARMLESS.few_shot_critique[0]


def made(op: str, **params: Any) -> Operator[Any]:
    kind = operator_type(op)
    given = {"input": "rows", "model": "base", **params} if op not in ("mix", "evaluate", "filter", "map") else params
    return kind(kind.params_type.model_validate(given), StepContext(constitution=HARMLESS))


def readings(operator: Operator[Any], passed: Sequence[Passed], metrics: Mapping[str, Any] | None = None) -> dict[str, Reading]:
    meter = Meter(operator.all_measures())
    for place, row in enumerate(passed):
        meter.add((place,), f"u{place}", row)
    return meter.readings({"rows_in": len(passed), "rows_out": sum(len(p.made) for p in passed), **(metrics or {})})


def noted(operator: Operator[Any], passed: Sequence[Passed], metrics: Mapping[str, Any] | None = None) -> set[str]:
    return {note["measure"] for note in notes(operator.all_measures(), readings(operator, passed, metrics))}


@pytest.mark.parametrize("op", BUILT_IN)
def test_every_measure_has_a_name_of_its_own_and_a_whole_sentence(op: str) -> None:
    params: dict[str, Any] = {
        "load": {"source": "x.jsonl"},
        "map": {"input": "rows", "drop": ["context"]},
        "filter": {"input": "rows", "drop": ["unchanged", "unchanged"]},
        "mix": {"inputs": {"rows": 1}},
        "evaluate": {"models": ["base"], "inputs": {"a": "rows"}, "checks": {"mine": {"any_of": ["x"]}}},
        "rl": {"input": "rows", "model": "base", "rewards": {"judge": 1}},
    }.get(op, {"input": "rows", "model": "base"})
    kind = operator_type(op)
    operator = kind(kind.params_type.model_validate(params), StepContext(constitution=HARMLESS))
    found = operator.all_measures()
    assert len({measure.name for measure in found}) == len(found)
    assert op in ("load", "map") or len(found) > 1 or operator.kind != "rows"
    for measure in found:
        assert measure.row or measure.figure
        message = measure.message(Reading(0.5, 1, 2))
        assert message.count("; ") >= 2
        assert "1 of 2 (50%)" in message


def answer(text: str, **more: Any) -> Passed:
    row: Row = {"uid": "u", "prompt": [{"role": "user", "content": ASKED}], "response": text, "truncated": False, **more}
    return Passed([row])


@pytest.mark.parametrize(
    ("flaw", "bad"),
    [
        ("empty", answer("  ")),
        ("circles", answer("I am sorry. " * 9)),
        ("human_turn", answer(f"{GOOD}\n\nHuman: And the police?")),
        ("truncated", answer(GOOD, truncated=True)),
        ("copies_prompt", answer(ASKED)),
        (
            "other_language",
            answer("Es ist nicht gut, das zu tun, und ich helfe nicht mit dem Haus der Nachbarn, nie."),
        ),
    ],
)
def test_generate_notes_a_flaw_and_no_other(flaw: str, bad: Passed) -> None:
    assert noted(made("generate"), [answer(GOOD)] * 20) == set()
    assert noted(made("generate"), [answer(GOOD)] * 10 + [bad] * 5) == {flaw}


def test_generate_notes_samples_that_are_all_equal_in_either_form() -> None:
    several = made("generate", samples=2)
    equal, different = (answer(GOOD, responses=[GOOD, other]) for other in (GOOD, "Ask him."))
    assert noted(several, [equal] * 6 + [different] * 4) == {"equal_samples"}
    assert noted(several, [equal] * 4 + [different] * 6) == set()
    rows = Passed([answer(GOOD, sample=i).made[0] for i in range(2)])
    assert noted(made("generate", samples=2, samples_as="rows"), [rows] * 3) == {"equal_samples"}


def criticised(text: str, cut: bool = False) -> Passed:
    row = {
        **answer(GOOD).made[0],
        "critique": text,
        "critique_truncated": cut,
        "principle": PRINCIPLE.id,
        "few_shot": [example_id(EXAMPLE)],
        "revision": None,
    }
    return Passed([row])


FINE = "The reply names no danger, yet it could say where to find someone to talk to."


@pytest.mark.parametrize(
    ("flaw", "text"),
    [("copies_answer", GOOD), ("copies_example", EXAMPLE.critique), ("copies_principle", PRINCIPLE.critique_request)],
)
def test_critique_notes_copies(flaw: str, text: str) -> None:
    assert noted(made("critique", few_shot=1), [criticised(FINE)] * 20) == set()
    assert flaw in noted(made("critique", few_shot=1), [criticised(FINE)] * 10 + [criticised(text)] * 2)


def revised(text: str, cut: bool = False) -> Passed:
    row = {**criticised(FINE).made[0], "response": "Break the window at the back.", "revision": text, "revisions": [text]}
    return Passed([{**row, "revision_truncated": cut}])


def test_cut_critiques_and_revisions_are_counted_each_where_it_is_made() -> None:
    critique, revise = made("critique", few_shot=1), made("revise")
    assert readings(critique, [criticised(FINE, True), criticised(FINE)])["truncated"].value == 0.5
    assert readings(revise, [revised(GOOD, True), revised(GOOD)])["truncated"].value == 0.5
    assert readings(revise, [Passed([{**revised(GOOD).made[0], "critique_truncated": True}])])["truncated"].value == 0


def test_notes_on_critiques_speak_of_revisions_since_nothing_is_trained_on_them() -> None:
    means = {op: {measure.name: measure.means for measure in made(op).measures()} for op in ("critique", "revise")}
    for flaw in ("empty", "circles", "human_turn", "truncated"):
        assert "revision" in means["critique"][flaw]
        assert "learn" in means["revise"][flaw] or "trained" in means["revise"][flaw]


@pytest.mark.parametrize(
    ("flaw", "text"),
    [
        ("copies_critique", FINE),
        ("copies_example", EXAMPLE.revision),
        ("copies_principle", PRINCIPLE.revision_request),
        ("unchanged", "Break the window at the back."),
        ("preamble", f"Here is a revised version: {GOOD}"),
        ("circles", "I am sorry. " * 9),
    ],
)
def test_revise_notes_a_flaw_and_no_other(flaw: str, text: str) -> None:
    assert noted(made("revise"), [revised(GOOD)] * 20) == set()
    assert noted(made("revise"), [revised(GOOD)] * 3 + [revised(text)] * 6) == {flaw}


def test_what_to_do_about_empty_texts_is_a_rule_that_filter_takes() -> None:
    for op, column in {"generate": "response", "critique": "critique", "revise": "revision"}.items():
        (empty,) = [measure for measure in made(op).measures() if measure.name == "empty"]
        rule = yaml.safe_load(empty.advice.split("`")[1])
        assert rule == {"length": {"column": column, "min": 1}}
        operator_type("filter").params_type.model_validate({"input": "rows", "drop": [rule]})


def test_an_example_that_the_constitution_lost_is_passed_over() -> None:
    row = {**revised(GOOD).made[0], "few_shot": ["gone"]}
    assert noted(made("revise"), [Passed([row])]) == set()


def pair(first: float, second: float, chosen: str = GOOD, rejected: str = "Break the window at the back, at night.") -> Passed:
    """Return a judged pair; the judge gave the one it was shown first `first` and then `second`."""
    p = (first + 1 - second) / 2
    more = {"p_a": [first, second], "p_chosen": max(p, 1 - p), "margin": 2 * max(p, 1 - p) - 1, "outcome": "decided"}
    return Passed([{"uid": "u", "chosen": chosen, "rejected": rejected, "unparsable_votes": 0, **more}])


def judged(passed: Sequence[Passed]) -> set[str]:
    judge: Any = made("judge")
    dropped: dict[str, int] = {}
    for one in passed:
        if one.dropped:
            dropped[one.dropped] = dropped.get(one.dropped, 0) + 1
    return noted(judge, passed, judge.metrics([row for one in passed for row in one.made], dropped))


def test_judge_notes_what_is_wrong_with_the_judge() -> None:
    shorter = pair(0.95, 0.05, chosen="No.")
    healthy = [pair(0.95, 0.05), shorter] * 10
    assert judged(healthy) == set()
    assert judged([*healthy, *[Passed(dropped=UNPARSABLE)] * 3]) == {"unparsable"}
    assert judged([*healthy, *[Passed(dropped=TIE_EQUAL)] * 12]) == {"equal_answers"}
    assert "order_flips" in judged([*healthy, *[Passed(dropped=TIE_FIRST)] * 20])
    assert judged([pair(0.95, 0.05)] * 10) == {"longer_chosen"}
    assert {"entropy_bits"} <= judged([pair(0.52, 0.49)] * 10)


def test_filter_notes_what_each_rule_leaves_out() -> None:
    rules = made("filter", input="rows", drop=["unchanged", "duplicates"])
    found = readings(rules, [], {"dropped": {"unchanged": 6, "duplicates": 1}, "rows_in": 10, "rows_out": 3})
    assert {name: reading.value for name, reading in found.items()} == {
        "dropped_unchanged": 0.6,
        "dropped_duplicates": 0.1,
        "no_rows": 0.0,
    }
    assert noted(rules, [], {"dropped": {"unchanged": 10, "duplicates": 0}, "rows_in": 10, "rows_out": 0}) == {
        "dropped_unchanged",
        "no_rows",
    }


def mixed(**rows: tuple[int, int]) -> dict[str, Any]:
    return {"mixture": {name: {"available": there, "rows": taken} for name, (there, taken) in rows.items()}}


def test_mix_notes_inputs_that_repeat_or_fall_short() -> None:
    mix = made("mix", inputs={"clean": 1, "helpful": 2.5})
    assert noted(mix, [], mixed(clean=(40, 40), helpful=(200, 100))) == set()
    assert noted(mix, [], mixed(clean=(40, 40), helpful=(40, 100))) == {"repeated"}
    assert noted(mix, [], mixed(clean=(40, 40), helpful=(50, 50))) == {"short"}
    numbered = made("mix", inputs={"clean": {"rows": "all"}, "helpful": {"rows": 100}})
    assert noted(numbered, [], mixed(clean=(40, 40), helpful=(50, 50))) == {"short"}


def test_trainings_note_cut_rows_flat_losses_and_chance() -> None:
    fine = {"rows": 100, "rows_cut": 3, "rows_left_out": 0, "first_loss": 2.0, "train_loss": 1.0}
    assert noted(made("sft"), [], fine) == set()
    assert noted(made("sft"), [], {**fine, "rows_cut": 30}) == {"rows_cut"}
    assert noted(made("sft"), [], {**fine, "rows_left_out": 30}) == {"rows_left_out"}
    assert noted(made("sft"), [], {**fine, "rows_left_out": 30, "rows_blank": 25}) == {"rows_blank"}, "5 are too long"
    assert noted(made("dpo"), [], {**fine, "rows_left_out": 30, "rows_equal": 25}) == {"rows_equal"}
    assert noted(made("sft"), [], {**fine, "train_loss": 2.1}) == {"loss_fall"}
    assert noted(made("dpo"), [], {**fine, "rewards_accuracies": 0.5}) == {"pair_accuracy"}
    assert noted(made("dpo"), [], {**fine, "rewards_accuracies": 0.5, "eval_rewards_accuracies": 0.9}) == set()
    assert noted(made("reward"), [], {**fine, "accuracy": 0.52}) == {"pair_accuracy"}


def test_rl_notes_a_policy_that_runs_away() -> None:
    rl = made("rl", rewards={"judge": 1})
    fine = {"rows": 10, "kl_end": 0.1, "length_start": 50.0, "length_end": 60.0, "boilerplate_rate_end": 0.0}
    assert noted(rl, [], fine) == set()
    assert noted(rl, [], {**fine, "kl_end": 3.0}) == {"kl_end"}
    assert noted(rl, [], {**fine, "length_end": 200.0}) == {"length_growth"}
    assert noted(rl, [], {**fine, "boilerplate_rate_end": 0.9}) == {"boilerplate"}
    assert noted(rl, [], {**fine, "frac_reward_zero_std": 1.0}) == {"equal_rewards"}


def rate(value: float, low: float, high: float) -> dict[str, float]:
    return {"rate": value, "low": low, "high": high, "n": 20}


def test_evaluate_notes_checks_nobody_meets_and_models_that_cant_be_told_apart() -> None:
    scores = made("evaluate", models=["base", "sl"], inputs={"harmful": "rows"}, checks={"mine": {"any_of": ["x"]}})
    apart = {"models": {"base": {"harmful": {"mine": rate(0.9, 0.8, 0.95)}}, "sl": {"harmful": {"mine": rate(0.1, 0.05, 0.2)}}}}
    close = {"models": {"base": {"harmful": {"mine": rate(0.5, 0.3, 0.7)}}, "sl": {"harmful": {"mine": rate(0.4, 0.2, 0.6)}}}}
    none = {"models": {model: {"harmful": {"mine": rate(0, 0, 0.1)}} for model in ("base", "sl")}}
    assert noted(scores, [], apart) == set()
    assert noted(scores, [], close) == {"undecided"}
    assert noted(scores, [], none) == {"met_mine"}
    assert noted(scores, [], {**apart, "not_english": 0.9}) == {"not_english"}
    assert noted(scores, [], {**apart, "not_english": 0.2}) == set()
