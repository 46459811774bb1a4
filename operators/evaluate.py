"""`evaluate`: asks several models the same prompts and reports what changed, each figure with its uncertainty.

Owns what is measured and the layout of metrics.json; the measures themselves are in `caiflow.operators.evaluation`.

    models.MODEL.SET.CHECK         {rate, n, low, high}
    models.MODEL.SET.GRADER        {rate, n, low, high, grade: {mean, ...}, unparsable, corrected: {rate, n, low, high}}
    adherence.MODEL.PRINCIPLE      {rate, n, low, high, change: {mean, n, low, high}}; `whole` in place of PRINCIPLE has all
    models.MODEL.SUITE.FIGURE      {rate, n, low, high, unparsable}; `suites` in place of SUITE has all of them together
    comparisons.NAME               {win_rates: {MODEL: {OTHER: rate...}}, ratings: {MODEL: {elo, low, high, n}}, ...}
    harmfulness.MODEL.SET          {mean, n, low, high}
    agreement.NAME                 {accuracy: {rate, ...}, kappa: {value, ...}, auc: {...}, raw: {...}, corrected: {...}, ...}
    agreement.NAME.false_positives {rate, n, low, high, bound, recall: {rate, ...}}
    agreement.NAME.effects         {position: {value, n, low, high}, length: {...}, people: {...}}; of comparisons `own` too
    choices.NAME.MODEL             {rate, n, low, high, p_right}
    perplexity.NAME.MODEL          {perplexity, low, high, nll_per_token, nll_low, nll_high, tokens, n, drift: {mean, ...}}
    lm_eval.MODEL.TASK.METRIC      {mean, stderr, low, high, n}
    frontier                       {helpfulness, harmlessness, points: {MODEL: {...}}}
    not_english                    share of the answers in another language than English, of those whose language can be told
    until.SET                      {prompts, sharp}: how many were asked until the figures were sharp, or there were no more
    failed                         answers that no model gave, by MODEL.SET

Beside it lie the answers (`responses/*.parquet`), the compared pairs (`comparisons/`), the questions (`choices/`), what
people had labelled (`agreement/`) and the scored texts (`texts/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from caiflow.engine.errors import Finding
from caiflow.engine.health import Measure
from caiflow.engine.identity import arms_of
from caiflow.engine.operator import ANSWERS, Calls, Expected, Job, LLMs, MetricsOperator
from caiflow.engine.rows.columns import Columns
from caiflow.engine.rows.tool_use import refused_tools
from caiflow.operators.evaluation import checks
from caiflow.operators.evaluation.checks import OWN_CHECKS, PatternCheck
from caiflow.operators.evaluation.params import (
    ADHERENCE,
    ALL_SUITES,
    SUITE_FIGURES,
    WHOLE,
    AdherenceParams,
    ComparisonParams,
    EvaluateParams,
    JudgeAgreementParams,
)
from caiflow.operators.grading.params import READING_VERSION, AgreementParams, columns
from caiflow.operators.judging.prompts import FORMAT_VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from caiflow.operators.judging.pairwise import PairJudge

SUITES_VERSION = 1
"""Raised when a suite's answers come to be graded otherwise."""
HARMFULNESS_VERSION = 3
"""Raised when what is rated, what counts where a rating is missing, or the mean's interval changes."""
GRADES_VERSION = 2
"""Raised when what grades amount to changes."""
UNTIL_VERSION = 2
"""Raised when other figures come to hold at any time."""
ARMS_VERSION = 1
"""Raised when arms of a matrix come to be compared otherwise."""


class Evaluate(MetricsOperator[EvaluateParams]):
    """Measure models against each other."""

    name = "evaluate"
    version = 4
    raised_for: ClassVar[Mapping[int, str]] = {4: "what moves a judge is told beside its figures"}
    params_type = EvaluateParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of each set of prompts, of questions and of texts."""
        p = self.params
        wanted = [(step, ["prompt", *self._searched()]) for step in p.inputs.values()]
        wanted += [(how.input, ["prompt", "corrects", "incorrects"]) for how in p.choices.values() if how.input]
        wanted += [(texts.input, [texts.column]) for texts in p.perplexity.values()]
        wanted += [(how.input, ["prompt", how.labels, *self._graded(how)]) for how in p.agreement.values()]
        wanted += [(pairs.input, ["prompt", "chosen", "rejected"]) for pairs in p.judge_agreement.values()]
        if p.adherence:
            wanted.append((p.adherence.input, ["prompt", "principle", *self._asked_of(p.adherence)]))
        wanted += [(step, ["prompt", "suite", "harmful", "reference"]) for step in p.suites]
        return {step: list(dict.fromkeys(c for name, columns in wanted if name == step for c in columns)) for step, _ in wanted}

    def check(self) -> Iterator[Finding]:
        """Yield names that lead nowhere, and what the constitution lacks."""
        p = self.params
        asked = (p.inputs, p.suites, p.adherence, p.choices, p.perplexity, p.lm_eval, p.agreement, p.judge_agreement)
        if not any(asked):
            yield Finding(
                (), "nothing to measure", "give `inputs`, `suites`, `choices`, `perplexity`, `agreement` or `lm_eval`"
            )
        if p.adherence and self.context.constitution is None:
            yield Finding(("adherence",), "there are no principles to keep to", "name some under `constitution:`")
        if p.adherence and ADHERENCE in p.inputs:
            yield Finding(("inputs", ADHERENCE), "the scenarios have this name", "give the set another name")
        if p.adherence and self.context.constitution is not None and WHOLE in self._principles:
            hint = "give the principle another id"
            yield Finding(("adherence",), f"`{WHOLE}` is the name of all principles together in the figures", hint)
        if p.suites and ALL_SUITES in p.inputs:
            yield Finding(("inputs", ALL_SUITES), "all suites together have this name", "give the set another name")
        if p.until and not p.inputs:
            yield Finding(("until",), "no set has figures to become sharp", "give `inputs`")
        for name in p.suites:
            if name in p.inputs or name in (ALL_SUITES, ADHERENCE):
                yield Finding(("suites", name), f"there is a set `{name}` already", "give the step another name")
        if p.lm_eval:
            from caiflow.operators.evaluation import harness

            yield from harness.problems()
        yield from self._set_problems(("harmfulness",), p.harmfulness.sets if p.harmfulness else ())
        for name, grader in p.graders.items():
            yield from self._set_problems(("graders", name), grader.sets)
        for name, how in p.comparisons.items():
            yield from self._set_problems(("comparisons", name), how.sets)
            yield from self._comparison_problems(name, how)
        for name, pairs in p.judge_agreement.items():
            yield from (wrong.below("judge_agreement", name) for wrong in self.pair_judge(pairs).problems())
        yield from self._grader_problems()
        yield from checks.problems(self.named_checks)
        if p.frontier:
            from caiflow.operators.evaluation import frontier

            yield from frontier.problems(p.frontier, p.comparisons, p.inputs, self._check_names)

    def check_columns(self, inputs: Mapping[str, Columns]) -> Iterator[Finding]:
        """Yield checks that search a column in which there are no texts."""
        yield from refused_tools(inputs, list(self.params.inputs.values()), "prompt", "inputs")
        for name, check in self.params.checks.items():
            kinds = {inputs[step].types.get(check.column) for step in self.params.inputs.values()}
            lists = check.column == "prompt" or not kinds.isdisjoint(("messages", "conversations", "texts", "numbers"))
            if lists and check.column != "response":
                message = f"a check searches texts, and `{check.column}` holds none"
                yield Finding(("checks", name, "column"), message, "name a column of texts")

    def identity(self) -> Mapping[str, Any]:
        """Return the names that stand in the figures, the standard checks, the files read and the judges' texts."""
        p = self.params
        given = self.context.constitution
        judging: list[ComparisonParams | JudgeAgreementParams] = [*p.comparisons.values(), *p.judge_agreement.values()]
        judged = bool(given) and any(not how.instruction or how.few_shot for how in judging)
        return {
            "format": FORMAT_VERSION,
            "models": list(p.models),
            "anchors": {name: [how.against, how.anchor] for name, how in p.comparisons.items()},
            "checks": {name: check.identity() for name, check in self.named_checks.items()},
            "files": {name: _digest(path) for name, path in self.sources().items()},
            "constitution": _texts(given) if given is not None and judged else None,
            **({"lm_eval": _harness_identity()} if p.lm_eval else {}),
            **({"adherence": self._principles} if p.adherence and given else {}),
            **({"suites": [list(p.suites), SUITES_VERSION]} if p.suites else {}),
            **({"until": UNTIL_VERSION} if p.until else {}),
            **({"arms": ARMS_VERSION} if arms_of(p.models) else {}),
            **({"harmfulness": HARMFULNESS_VERSION} if p.harmfulness else {}),
            **({"grades": GRADES_VERSION} if p.graders else {}),
            **({"reading": READING_VERSION} if p.adherence and p.adherence.method == "text" else {}),
            **{name: value for how in judging for name, value in how.ordering.items()},
        }

    def sources(self) -> Mapping[str, Any]:
        """Return the files of questions."""
        return {f"choices.{n}": self.context.base_dir / c.source for n, c in self.params.choices.items() if c.source}

    def calls_expected(self, inputs: Mapping[str, Expected]) -> Calls | None:
        """Return the calls of all measures; None where an input's rows aren't known, or the harness decides them."""
        if self.params.lm_eval or not self.needs().keys() <= inputs.keys():
            return None
        from caiflow.operators.evaluation import expected

        sizes = expected.Sizes({step: inputs[step] for step in self.needs()}, self.sources())
        return expected.calls(self.params, sizes, lambda how: self.pair_judge(how).calls())

    async def measure(self, job: Job, llms: LLMs) -> Mapping[str, Any]:
        """Return the figures and write the rows behind them."""
        from caiflow.operators.evaluation.measuring import Asked, Measuring

        principles = self._principles if self.params.adherence else {}
        asked = Asked(self.params, self.context.seed, self.named_checks, self.sources(), self.pair_judge, principles)
        return await Measuring(asked, job, llms).figures()

    def measures(self) -> Sequence[Measure]:
        """Return what may be wrong with the figures: checks that nothing meets, models that can't be told apart."""
        from caiflow.operators.evaluation import health

        return health.measures(self.params.checks, self.params.graders, [*self.params.agreement, *self.params.judge_agreement])

    def handed_on(self, tool: str, step: str, made: Path) -> Iterator[tuple[str, str | Path]]:
        """Yield the answers as logs of Inspect, or the prompts as tasks of verifiers."""
        if tool == "inspect":
            from caiflow.operators.handed_on import inspect_log

            yield from inspect_log.files(step, made, self.named_checks)
        elif tool == "verifiers":
            from caiflow.operators.handed_on import verifiers_tasks

            yield from verifiers_tasks.files(step, made, self.named_checks)

    @property
    def named_checks(self) -> dict[str, PatternCheck]:
        """The checks by name: the standard ones, where they are wanted, and the spec's own."""
        return {**(checks.STANDARD if self.params.standard_checks else {}), **self.params.checks}

    def pair_judge(self, how: ComparisonParams | JudgeAgreementParams) -> PairJudge:
        """Return the judge of pairs."""
        from caiflow.operators.judging.pairwise import PairJudge

        return PairJudge(how, self.context.constitution, self.context.seed, how.instruction)

    @property
    def _principles(self) -> dict[str, str]:
        """What each principle asks for, by its id."""
        return {one.id: one.asks_for for one in self.constitution.principles}

    @property
    def _check_names(self) -> list[str]:
        return [*self.named_checks, *OWN_CHECKS, *self.params.graders]

    def _searched(self) -> list[str]:
        """Return the prompts' own columns that checks look into and graders' questions name."""
        if not self.params.checks and not self.params.graders:
            return []
        from caiflow.operators.evaluation.answers import COLUMNS

        named = {check.column for check in self.params.checks.values()}
        return sorted(named.union(*map(columns, self.params.graders.values())) - set(COLUMNS))

    def _asked_of(self, how: AdherenceParams) -> list[str]:
        """Return the scenarios' own columns that the judge's question names."""
        return [name for name in columns(how) if name != "principle"]

    def _graded(self, how: AgreementParams) -> list[str]:
        """Return the columns of labelled rows that their grader reads."""
        grader = self.params.graders.get(how.grader)
        return [how.answer or "|".join(ANSWERS), *(columns(grader) if grader else ())]

    def _grader_problems(self) -> Iterator[Finding]:
        """Yield graders that have a check's name, and agreements whose grader isn't there."""
        p = self.params
        for name in self.named_checks:
            if name in OWN_CHECKS:
                yield Finding(("checks", name), f"`{name}` is looked at in every answer", "give the check another name")
            if p.suites and name in SUITE_FIGURES:
                yield Finding(("checks", name), f"`{name}` is a figure of suites", "give the check another name")
        for name in p.graders:
            if name in self.named_checks or name in OWN_CHECKS:
                yield Finding(("graders", name), f"there is a check `{name}` already", "give the grader another name")
        for name, how in p.agreement.items():
            if how.grader not in p.graders:
                known = f"graders are {', '.join(p.graders)}" if p.graders else "declare it under `graders`"
                yield Finding(("agreement", name, "grader"), f"names no grader, got {how.grader!r}", known)
            if name in p.judge_agreement:
                yield Finding(("judge_agreement", name), f"there is an agreement `{name}` already", "give it another name")

    def _set_problems(self, path: tuple[str | int, ...], sets: Sequence[str]) -> Iterator[Finding]:
        for i, name in enumerate(sets):
            if name not in self.params.inputs:
                sets_given = ", ".join(self.params.inputs)
                yield Finding((*path, "sets", i), f"names no set of prompts, got {name!r}", f"sets are {sets_given}")

    def _comparison_problems(self, name: str, how: ComparisonParams) -> Iterator[Finding]:
        yield from (wrong.below("comparisons", name) for wrong in self.pair_judge(how).problems())
        for field in ("against", "anchor"):
            value = getattr(how, field)
            if value is not None and value not in self.params.models:
                message = f"isn't among the models that are measured, got {value!r}"
                yield Finding(("comparisons", name, field), message, f"models are {', '.join(self.params.models)}")
        if len(self.params.models) < 2:
            yield Finding(("comparisons", name), "a comparison needs two models", "add one to `models`")


def _digest(path: Any) -> str:
    from caiflow.engine.store.file_digests import file_digest

    return file_digest(path)


def _harness_identity() -> dict[str, Any]:
    from caiflow.operators.evaluation import harness

    return harness.identity()


def _texts(constitution: Any) -> Any:
    principles = [[p.id, p.judge, p.weight] for p in constitution.principles]
    return [principles, [[e.principle, e.a, e.b, e.answer, e.thought, list(e.prompt)] for e in constitution.few_shot_judge]]
