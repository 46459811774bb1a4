"""The calls of `evaluate` told beforehand are those that it makes: just as many where they are exact, no more elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.identity import digest
from caiflow.engine.llm.base import Completion, ModelSource, Request
from caiflow.engine.operator import Calls, Expected, StepContext
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.run.units import MeasureUnit
from caiflow.operators.evaluate import Evaluate
from caiflow.operators.evaluation.params import EvaluateParams
from caiflow.operators.judging.prompts import user
from support.runs_without_ray import AskedLink, says
from support.small_constitution import small_constitution

MODELS = ("base", "sl", "rl", "judge")
JUDGE = {"judge": "judge", "instruction": "Which is better?"}
ASKS = {
    "answers": ({}, 12 * 2),
    "answers of some prompts": ({"limit": 3}, 3 * 2),
    "samples": ({"samples": 3, "sampling": {"temperature": 1}}, 12 * 2 * 3),
    "two sets": ({"inputs": {"red": "red", "calm": "calm"}}, 17 * 2),
    "comparisons": ({"comparisons": {"help": {**JUDGE, "sets": ["red"]}}}, 12 * 2 + 12 * 2),
    "comparisons of three": (
        {"models": ["base", "sl", "rl"], "comparisons": {"help": {**JUDGE, "sets": ["red"], "swap": False, "limit": 5}}},
        36 + 15,
    ),
    "comparisons with one": (
        {"models": ["base", "sl", "rl"], "comparisons": {"help": {**JUDGE, "sets": ["red"], "against": "sl"}}}, 36 + 12 * 2 * 2
    ),
    "comparisons after thoughts": (
        {"comparisons": {"help": {**JUDGE, "sets": ["red"], "chain_of_thought": {"samples": 2}}}}, 24 + 12 * 2 * 4
    ),
    "comparisons by principles": (
        {"comparisons": {"help": {"judge": "judge", "sets": ["red"], "principles": 2}}}, 24 + 12 * 2 * 2
    ),
    "ratings": ({"harmfulness": {"judge": "judge", "sets": ["red"]}}, 24 + 24),
    "graders": ({"graders": {"harm": {"model": "judge", "question": "Bad? {{ response }}"}}}, 24 + 24),
    "graders of one set": (
        {"inputs": {"red": "red", "calm": "calm"}, "graders": {"harm": {"model": "judge", "label": "bad", "sets": ["calm"]}}},
        34 + 10,
    ),
    "agreement": (
        {
            "graders": {"harm": {"model": "judge", "question": "Bad? {{ response }}", "sets": ["red"]}},
            "agreement": {"people": {"input": "labelled", "grader": "harm", "labels": "label", "limit": 6}},
        },
        24 + 24 + 6,
    ),
    "a judge held against people": ({"judge_agreement": {"people": {**JUDGE, "input": "pairs"}}}, 24 + 8 * 2),
    "questions": ({"inputs": {}, "choices": {"hhh": {"input": "asked"}}}, 7 * 2),
    "questions of a file": ({"inputs": {}, "choices": {"hhh": {"source": "questions.jsonl", "limit": 4}}}, 4 * 2),
    "texts": ({"perplexity": {"prose": {"input": "prose", "column": "text", "limit": 5}}}, 24 + 5 * 2),
}  # fmt: skip
EXACT = {"answers", "answers of some prompts", "samples", "questions", "questions of a file"}


class Judging(AskedLink):
    """A model that also chooses, scores and labels; `alike` has it answer everything with the same words."""

    alike: bool = False

    async def submit(self, requests: Sequence[tuple[int, Request]], over: Sequence[str] = ()) -> None:
        for number, request in requests:
            self.answered.append(request)
            logprobs = {choice: -1.0 - place for place, choice in enumerate(request.choices or ())} or None
            if request.classify:
                logprobs = {"bad": -0.1, "good": -2.4}
            text = "the same" if self.alike else says(request).text
            scored = (-1.0,) if request.score else None
            self._ready.append((number, Completion(text, "stop", 3, 2, logprobs=logprobs, prompt_logprobs=scored)))


def inputs(folder: Path) -> dict[str, Path]:
    made: dict[str, list[Row]] = {
        "red": [{"prompt": [user(f"bad {n}")]} for n in range(12)],
        "calm": [{"prompt": [user(f"good {n}")]} for n in range(5)],
        "labelled": [{"prompt": [user(f"old {n}")], "response": f"old answer {n}", "label": n % 2} for n in range(9)],
        "pairs": [{"prompt": [user(f"pair {n}")], "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(8)],
        "asked": [{"prompt": [user(f"what {n}")], "corrects": '["(A)"]', "incorrects": '["(B)"]'} for n in range(7)],
        "prose": [{"text": f"text {n}"} for n in range(6)],
    }
    types: dict[str, Any] = {"prompt": "messages", "label": "integer"}
    for name, rows in made.items():
        with RowsWriter(folder / name, {"uid": "text", **{column: types.get(column, "text") for column in rows[0]}}) as out:
            out.write_rows([{"uid": f"{name}{n}", **row} for n, row in enumerate(rows)])
    questions = [{"prompt": f"Which {n}?", "corrects": ["(A)"], "incorrects": ["(B)"]} for n in range(6)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    return {name: folder / name for name in made}


def step(folder: Path, **fields: Any) -> Evaluate:
    given = {"models": ["base", "sl"], "inputs": {"red": "red"}, **fields}
    return Evaluate(EvaluateParams.model_validate(given), StepContext(3, folder, small_constitution()))


def calls_of_a_run(folder: Path, operator: Evaluate, there: dict[str, Path], *, alike: bool = False) -> int:
    """Return the calls that a run makes, by its own count and by what the models were asked."""
    links = {name: Judging() for name in MODELS}
    for link in links.values():
        link.alike = alike
    models = {name: ModelSource(name, digest(name)) for name in MODELS}
    there = {name: there[name] for name in operator.needs()}
    (folder / "out").mkdir()
    ways = {name: [link] for name, link in links.items()}
    unit = MeasureUnit("scores", operator, there, models, folder / "out", ways, folder / "ledger")
    counts = unit.run(lambda _: None)["scores"].counts
    assert counts["calls"] == sum(len(link.answered) for link in links.values())
    return counts["calls"]


def told(operator: Evaluate, there: dict[str, Path]) -> Calls:
    known = {name: Expected(Rows(there[name]).num_rows, exact=True) for name in operator.needs()}
    calls = operator.calls_expected(known)
    assert calls is not None
    return calls


@pytest.mark.parametrize("kind", ASKS)
def test_a_run_makes_the_calls_that_were_told(kind: str, tmp_path: Path) -> None:
    fields, number = ASKS[kind]
    operator, there = step(tmp_path, **fields), inputs(tmp_path)
    assert told(operator, there) == Calls(number, exact=kind in EXACT)
    assert calls_of_a_run(tmp_path, operator, there) == number


@pytest.mark.parametrize("kind", ASKS)
def test_no_more_are_made_where_answers_are_alike(kind: str, tmp_path: Path) -> None:
    operator, there = step(tmp_path, **ASKS[kind][0]), inputs(tmp_path)
    before = told(operator, there)
    made = calls_of_a_run(tmp_path, operator, there, alike=True)
    assert made == before.number if before.exact else made <= before.number


def test_bounds_stay_bounds(tmp_path: Path) -> None:
    operator = step(tmp_path)
    assert operator.calls_expected({"red": Expected(12)}) == Calls(24, exact=False)


@pytest.mark.parametrize(
    "fields", [{"perplexity": {"prose": {"input": "prose", "column": "text"}}}, {"lm_eval": {"tasks": ["mmlu"]}}]
)
def test_what_can_t_be_known_has_no_number(fields: dict[str, Any], tmp_path: Path) -> None:
    assert step(tmp_path, **fields).calls_expected({"red": Expected(12, exact=True)}) is None
