"""How many calls an `evaluate` step makes, told before it runs from how many rows its inputs have.

Owns that count and how sure it is. What depends on answers, such as how many are alike and so asked about once, is a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from caiflow.engine.operator import Calls, Expected
from caiflow.operators.evaluation.params import ChoicesParams, ComparisonParams, EvaluateParams, JudgeAgreementParams

JudgeCalls = Callable[[ComparisonParams | JudgeAgreementParams], int]
"""The calls in which one pair is judged."""

MOST_OF_A_SUITE = 3
"""The calls that grading one answer to a suite's prompt takes at most (StrongREJECT's three questions)."""


class Sizes(NamedTuple):
    """How many rows there are to measure: those of the input steps, and the files of questions by their names."""

    inputs: Mapping[str, Expected]
    files: Mapping[str, Path]

    def of(self, step: str, limit: int | None) -> int:
        """Return the rows of a step that are taken."""
        return min(self.inputs[step].rows, limit or self.inputs[step].rows)

    def questions(self, name: str, how: ChoicesParams) -> int:
        """Return the questions that are asked."""
        if how.input:
            return self.of(how.input, how.limit)
        from caiflow.operators.evaluation.choices import read

        there = sum(1 for _ in read(self.files[f"choices.{name}"]))
        return min(there, how.limit or there)


def calls(p: EvaluateParams, sizes: Sizes, judge_calls: JudgeCalls) -> Calls:
    """Return the calls of all measures but those of the LM Evaluation Harness.

    Raises:
        ValueError: a file of questions can't be read.
    """
    models = len(p.models)
    prompts = {name: sizes.of(step, p.limit) for name, step in p.inputs.items()}
    scenarios = sizes.of(p.adherence.input, p.limit) if p.adherence else 0
    of_suites = sum(sizes.of(step, p.limit) for step in p.suites)
    asked = (sum(prompts.values()) + of_suites * (1 + MOST_OF_A_SUITE) + 2 * scenarios) * p.samples * models
    asked += sum(sizes.questions(name, how) for name, how in p.choices.items()) * models
    judged = _about_answers(p, prompts, judge_calls) + _about_rows(p, sizes, judge_calls)
    # two sets, or two measures, may share rows, and what is the same is asked once
    alone = len(p.inputs) + len(p.choices) <= 1 and not (judged or p.suites or scenarios or p.until)
    return Calls(asked + judged, alone and all(given.exact for given in sizes.inputs.values()))


def _about_answers(p: EvaluateParams, prompts: Mapping[str, int], judge_calls: JudgeCalls) -> int:
    """Return the calls of comparisons, ratings and graders, as if no two answers were alike."""
    models = len(p.models)
    found = 0
    for how in p.comparisons.values():
        pairs = models - 1 if how.against else models * (models - 1) // 2
        found += sum(min(prompts[name], how.limit or prompts[name]) for name in how.sets) * pairs * judge_calls(how)
    graded = [grader.sets or tuple(prompts) for grader in p.graders.values()]
    graded += [p.harmfulness.sets] if p.harmfulness else []
    return found + sum(prompts[name] for sets in graded for name in sets) * p.samples * models


def _about_rows(p: EvaluateParams, sizes: Sizes, judge_calls: JudgeCalls) -> int:
    """Return the calls about texts, labelled answers and pairs, as if no two were alike."""
    texts = sum(sizes.of(how.input, how.limit) for how in p.perplexity.values()) * len(p.models)
    labelled = sum(sizes.of(how.input, how.limit) for how in p.agreement.values())
    pairs = (sizes.of(how.input, how.limit) * judge_calls(how) * (2 if how.second else 1) for how in p.judge_agreement.values())
    return texts + labelled + sum(pairs)
