"""The measures of one `evaluate` step carried out, one after the other, and the rows behind their figures written.

Owns their order and what of them stops the step; the layout of the figures is in `evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from caiflow.engine.operator import Job, LLMs
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import RowsWriter
from caiflow.operators.evaluation import (
    agreement,
    answers,
    checks,
    choices,
    comparisons,
    frontier,
    graded,
    harmfulness,
    harness,
    perplexity,
)
from caiflow.operators.evaluation.answers import Groups
from caiflow.operators.evaluation.attempts import refuse_failures
from caiflow.operators.evaluation.checks import OWN_CHECKS, PatternCheck
from caiflow.operators.evaluation.conduct import adherence, arms, suites
from caiflow.operators.evaluation.params import ADHERENCE, ALL_SUITES, ComparisonParams, EvaluateParams, JudgeAgreementParams
from caiflow.operators.judging.pairwise import PairJudge
from caiflow.operators.measures.pictures import draw_frontier

FRONTIER_PICTURE = "_frontier.png"
"""The underscore keeps it out of the artifact's content, which is the same with and without matplotlib."""


class Asked(NamedTuple):
    """What a step asks for: its parameters, its checks, the files it reads, its pairs' judges, and principles."""

    params: EvaluateParams
    seed: int
    checks: Mapping[str, PatternCheck]
    files: Mapping[str, Path]
    pair_judge: Callable[[ComparisonParams | JudgeAgreementParams], PairJudge]
    principles: Mapping[str, str]


class Measuring:
    """The measures of one step."""

    def __init__(self, asked: Asked, job: Job, llms: LLMs) -> None:
        self._asked, self._params, self._seed = asked, asked.params, asked.seed
        self._job, self._llms = job, llms

    async def figures(self) -> dict[str, Any]:
        """Return all figures, and write the answers and other rows that they are counted on.

        Raises:
            StepError: more answers or judgements failed than `max_failed` allows.
        """
        p = self._params
        sets = {name: self._job.inputs[step].pylist(limit=p.limit) for name, step in p.inputs.items()}
        of_suites = {step: self._job.inputs[step].pylist(limit=p.limit) for step in p.suites}
        suites.refuse_half(of_suites)
        sets |= of_suites
        if p.adherence:
            sets[ADHERENCE] = self._job.inputs[p.adherence.input].pylist(limit=p.limit)
            adherence.refuse_unknown(sets[ADHERENCE], self._asked.principles)
        rows = await answers.ask_models(self._llms, p, {name: rows for name, rows in sets.items() if not self._sharpens(name)})
        sharpened = await self._sharpened({name: rows for name, rows in sets.items() if self._sharpens(name)})
        rows = [*sharpened.rows, *rows]
        refuse_failures(rows, "answers", p.max_failed)
        groups = answers.by_model_and_set(rows)
        figures: dict[str, Any] = {"models": self._rates(groups)}
        if p.standard_checks and (foreign := answers.not_english(rows)):
            figures["not_english"] = foreign
        figures |= await self._choices()
        figures |= await self._perplexity()
        if p.lm_eval:
            figures["lm_eval"] = await harness.run_tasks(p.lm_eval, p.models, self._llms, self._seed)
        figures |= await self._comparisons(groups)
        if p.harmfulness:
            refuse_failures(await harmfulness.rate(p.harmfulness, rows, self._llms), "ratings", p.max_failed)
            figures["harmfulness"] = self._harmfulness(groups)
        held, agreements = await self._agreement()
        await self._grade(rows, groups, held, figures["models"])
        await self._suites(rows, groups, figures["models"])
        figures |= agreements
        self._hold_at_any_time(figures, sharpened)
        figures |= await self._adherence(groups)
        figures |= self._arms(groups)
        self._write("responses", answers.COLUMNS, rows)
        figures["failed"] = {f"{m}.{s}": n for (m, s), g in groups.items() if (n := sum(bool(r["failed"]) for r in g))}
        if p.frontier:
            figures["frontier"] = frontier.frontier(figures, p.frontier)
            draw_frontier(figures["frontier"], self._job.out_dir / FRONTIER_PICTURE)
        return figures

    def _sharpens(self, name: str) -> bool:
        return self._params.until is not None and name in self._params.inputs

    async def _sharpened(self, sets: Mapping[str, Sequence[Row]]) -> answers.Asked:
        """Return answers to as many prompts as `until` wants."""
        p, tests = self._params, checks.compiled(self._asked.checks)
        if p.until is None:
            return answers.Asked([], {}, {})

        async def mark(rows: list[Row]) -> None:
            refuse_failures(rows, "answers", p.max_failed)  # else every prompt would be tried on a model that is gone
            answers.mark(rows, tests)
            for name, how in p.graders.items():
                refuse_failures(await graded.mark(name, how, rows, self._llms), f"grades by {name}", p.max_failed)

        names = {s: [*tests, *(n for n, how in p.graders.items() if not how.sets or s in how.sets)] for s in sets}
        sharpening = answers.Sharpening(names, p.until.interval / 100, mark, self._seed, p.graders)
        return await answers.ask_until(self._llms, p, sets, sharpening)

    def _hold_at_any_time(self, figures: dict[str, Any], asked: answers.Asked) -> None:
        """Give the rates whose number of prompts followed from the answers intervals that hold all the same."""
        names = {*self._asked.checks, *self._params.graders, *OWN_CHECKS}
        for name in asked.prompts:
            for found in (sets for sets in figures["models"].values() if name in sets):  # a set without prompts has none
                found[name] |= {check: answers.at_any_time(rate) for check, rate in found[name].items() if check in names}
        if asked.prompts:
            figures["until"] = {name: {"prompts": n, "sharp": asked.sharp[name]} for name, n in asked.prompts.items()}

    def _rates(self, groups: Groups) -> dict[str, dict[str, Any]]:
        tests = checks.compiled(self._asked.checks)
        found: dict[str, dict[str, Any]] = {model: {} for model in self._params.models}
        for (model, name), rows in groups.items():
            answers.mark(rows, tests)
            found[model][name] = answers.rates(rows, list(tests))
        return found

    def _harmfulness(self, groups: Groups) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for (model, name), rows in groups.items():
            mean = harmfulness.mean_rating(rows, self._seed)
            if mean is not None:
                found.setdefault(model, {})[name] = mean
        return found

    async def _grade(self, rows: list[Row], groups: Groups, held: Sequence[Row], rates: dict[str, dict[str, Any]]) -> None:
        """Add to the rates of each model and set those of the graders; `held` are the labelled answers, by `grader`."""
        for name, how in self._params.graders.items():
            found = await graded.mark(name, how, [row for row in rows if row["set"] in self._params.inputs], self._llms)
            refuse_failures(found, f"grades by {name}", self._params.max_failed)
            labels = graded.labels([row for row in held if row["grader"] == name])
            for (model, set_name), group in groups.items():
                figures = graded.figures(name, how, group, labels, self._seed)
                if figures is not None:
                    rates[model][set_name][name] = figures

    async def _suites(self, rows: Sequence[Row], groups: Groups, rates: dict[str, dict[str, Any]]) -> None:
        """Add to the rates of each model those of each suite, and of all suites together."""
        for name, judge in self._params.suites.items():
            found = await suites.mark(name, judge, rows, self._llms, self._seed)
            refuse_failures(found, f"grades of {name}", self._params.max_failed)
        for model in self._params.models if self._params.suites else ():
            of_model = {name: groups[model, name] for name in self._params.suites if (model, name) in groups}
            for name, group in of_model.items():
                rates[model][name] |= suites.figures(group)
            rates[model][ALL_SUITES] = suites.figures([row for group in of_model.values() for row in group])

    async def _adherence(self, groups: Groups) -> dict[str, Any]:
        """Return how far each model keeps to each principle."""
        how, principles = self._params.adherence, self._asked.principles
        if how is None:
            return {}
        by_model = {model: groups[model, ADHERENCE] for model in self._params.models if (model, ADHERENCE) in groups}
        found = await adherence.mark(how, [row for rows in by_model.values() for row in rows], principles, self._llms)
        refuse_failures(found, "grades of adherence", self._params.max_failed)
        return {ADHERENCE: adherence.figures(by_model, list(principles))}

    def _arms(self, groups: Groups) -> dict[str, Any]:
        """Return what sets arms apart, where the number of prompts didn't follow from their answers."""
        names = [*self._asked.checks, *self._params.graders, *OWN_CHECKS]
        sets = [name for name in self._params.inputs if not self._sharpens(name)]
        found = arms.differences(groups, self._params.models, names, sets, self._params.graders)
        return {"arms": found} if found else {}

    async def _agreement(self) -> tuple[list[Row], dict[str, Any]]:
        """Return the rows that graders were held against, and the figures of graders and judges held against people."""
        p, seed = self._params, self._seed
        held: list[Row] = []
        found: dict[str, Any] = {}
        for name, how in p.agreement.items():
            grader = p.graders[how.grader]
            given = self._job.inputs[how.input].pylist(limit=how.limit)
            rows = await agreement.grade(name, how, grader, given, self._llms)
            refuse_failures(rows, f"grades for {name}", p.max_failed)
            found[name] = {"grader": how.grader, **agreement.figures(rows, grader.span, seed, how.recall)}
            held += [{**row, "grader": how.grader} for row in rows]
        pairs: list[Row] = []
        for name, asked in p.judge_agreement.items():
            given = self._job.inputs[asked.input].pylist(limit=asked.limit)
            judged = await agreement.judge(name, asked, given, self._llms, self._asked.pair_judge(asked))
            refuse_failures(judged, f"judgements for {name}", p.max_failed)
            found[name] = agreement.judge_figures(judged, seed)
            pairs += judged
        if held or pairs:
            self._write("agreement", agreement.COLUMNS, [*held, *pairs])
        return held, {"agreement": found} if found else {}

    async def _comparisons(self, groups: Groups) -> dict[str, Any]:
        found: dict[str, Any] = {}
        kept: list[Row] = []
        for name, how in self._params.comparisons.items():
            rows = await comparisons.compare(name, how, groups, self._llms, self._asked.pair_judge(how))
            anchor = how.anchor or how.against or self._params.models[0]
            found[name] = comparisons.figures(rows, anchor, how.prior, self._seed)
            refuse_failures(rows, f"comparisons for {name}", self._params.max_failed)
            kept += rows
        if kept:
            self._write("comparisons", comparisons.COLUMNS, kept)
        return {"comparisons": found} if found else {}

    async def _choices(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        kept: list[Row] = []
        files = self._asked.files
        for name, how in self._params.choices.items():
            read = self._job.inputs[how.input].pylist(limit=how.limit) if how.input else choices.read(files[f"choices.{name}"])
            rows = list(islice(read, how.limit))
            for model in self._params.models:
                scored = await choices.score(name, how, rows, model, self._llms)
                refuse_failures(scored, f"questions of {name} to {model}", self._params.max_failed)
                found.setdefault(name, {})[model] = choices.figures(scored)
                kept += scored
        if kept:
            self._write("choices", choices.COLUMNS, kept)
        return {"choices": found} if found else {}

    async def _perplexity(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        kept: list[Row] = []
        for name, how in self._params.perplexity.items():
            texts = self._job.inputs[how.input].pylist(limit=how.limit)
            by_model = {}
            for model in self._params.models:
                by_model[model] = await perplexity.score(name, how, texts, model, self._llms)
                refuse_failures(by_model[model], f"texts of {name} under {model}", self._params.max_failed)
                kept += by_model[model]
            first = by_model[self._params.models[0]]
            found[name] = {model: perplexity.figures(rows, first, self._seed) for model, rows in by_model.items()}
        if kept:
            self._write("texts", perplexity.COLUMNS, kept)
        return {"perplexity": found} if found else {}

    def _write(self, folder: str, columns: Mapping[str, Any], rows: Sequence[Row]) -> None:
        with RowsWriter(self._job.out_dir / folder, dict(columns)) as out:
            out.write_rows([{name: row.get(name) for name in columns} for row in rows])
