"""`evaluate`: asks several models the same prompts and reports what changed, each figure with its uncertainty.

Owns what is measured and the layout of metrics.json; the measures themselves are in `caiflow.operators.evaluation`.

    models.MODEL.SET.CHECK         {rate, n, low, high}
    comparisons.NAME               {win_rates: {MODEL: {OTHER: rate...}}, ratings: {MODEL: {elo, low, high, n}}, ...}
    harmfulness.MODEL.SET          {mean, n, low, high}
    choices.NAME.MODEL             {rate, n, low, high, p_right}
    perplexity.NAME.MODEL          {perplexity, low, high, nll_per_token, nll_low, nll_high, tokens, n, drift: {mean, ...}}
    lm_eval.MODEL.TASK.METRIC      {mean, stderr, low, high, n}
    frontier                       {helpfulness, harmlessness, points: {MODEL: {...}}}
    failed                         answers that no model gave, by MODEL.SET

Beside it lie the answers (`responses/*.parquet`), the compared pairs (`comparisons/`), the questions (`choices/`)
and the scored texts (`texts/`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from caiflow.engine.figures import draw_frontier
from caiflow.engine.operator import Job, LLMs, MetricsOperator, ModelRef, Params, Row, RowsRef, SamplingParams
from caiflow.engine.pairwise import PairJudge
from caiflow.engine.prompts import FORMAT_VERSION
from caiflow.operators.evaluation import answers, checks, choices, comparisons, frontier, harmfulness, harness, perplexity
from caiflow.operators.evaluation.attempts import refuse_failures
from caiflow.operators.evaluation.checks import PatternCheck
from caiflow.operators.evaluation.choices import ChoicesParams
from caiflow.operators.evaluation.comparisons import ComparisonParams
from caiflow.operators.evaluation.frontier import FrontierParams
from caiflow.operators.evaluation.harmfulness import HarmfulnessParams
from caiflow.operators.evaluation.harness import HarnessParams
from caiflow.operators.evaluation.perplexity import PerplexityParams

Problem = tuple[tuple[str | int, ...], str, str]
FRONTIER_PICTURE = "_frontier.png"
"""The underscore keeps it out of the artifact's content, which is the same with and without matplotlib."""
OWN_CHECKS = ("truncated", "repetitive", "duplicate")


class EvaluateParams(Params):
    """Parameters of `evaluate`."""

    models: tuple[ModelRef, ...] = Field(min_length=1)
    """The models that are measured."""
    inputs: dict[str, RowsRef] = Field(default_factory=dict)
    """Sets of prompts, by the name they have in the figures."""
    sampling: SamplingParams = SamplingParams()
    """How the answers' tokens are drawn."""
    samples: int = Field(default=1, ge=1, le=1024)
    """Answers per prompt; rates average them, and intervals count prompts."""
    system: str = ""
    """System turn before every prompt; replaces the prompt's own."""
    limit: int | None = Field(default=None, ge=1)
    """Prompts per set, from its head; by default all."""
    max_failed: int = Field(default=0, ge=0)
    """Answers, and judgements of each kind, that may fail (too long, say) before the step does; figures leave them out."""
    standard_checks: bool = True
    """Whether refusal, explained_refusal, evasive_refusal, compliance and boilerplate are checked."""
    checks: dict[str, PatternCheck] = Field(default_factory=dict)
    """Further checks by name, or others in place of the standard ones."""
    comparisons: dict[str, ComparisonParams] = Field(default_factory=dict)
    """Comparisons of the models by a judge, by name (`helpfulness`, `harmlessness`)."""
    harmfulness: HarmfulnessParams | None = None
    """Ratings of the answers by a judge, 0 to 4."""
    choices: dict[str, ChoicesParams] = Field(default_factory=dict)
    """Multiple-choice questions, by name."""
    perplexity: dict[str, PerplexityParams] = Field(default_factory=dict)
    """Given texts whose likelihood under each model is measured, by name; shows what training made a model forget."""
    lm_eval: HarnessParams | None = None
    """Tasks of the LM Evaluation Harness, through its own library."""
    frontier: FrontierParams | None = None
    """Helpfulness against harmlessness as one figure; `_frontier.png` where matplotlib is installed (the extra `plots`)."""


class Evaluate(MetricsOperator[EvaluateParams]):
    """Measure models against each other."""

    name = "evaluate"
    params_type = EvaluateParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of each set of prompts, of questions and of texts."""
        p = self.params
        searched = sorted({check.column for check in p.checks.values()} - set(answers.COLUMNS))
        wanted = [(step, ["prompt", *searched]) for step in p.inputs.values()]
        wanted += [(how.input, ["prompt", "corrects", "incorrects"]) for how in p.choices.values() if how.input]
        wanted += [(texts.input, [texts.column]) for texts in p.perplexity.values()]
        return {step: list(dict.fromkeys(c for name, columns in wanted if name == step for c in columns)) for step, _ in wanted}

    def check(self) -> Iterator[Problem]:
        """Yield names that lead nowhere, and what the constitution lacks."""
        p = self.params
        if not (p.inputs or p.choices or p.perplexity or p.lm_eval):
            yield (), "nothing to measure", "give `inputs`, `choices`, `perplexity` or `lm_eval`"
        if p.lm_eval:
            for message, hint in harness.problems():
                yield ("lm_eval",), message, hint
        named = [("comparisons", name) for name in p.comparisons] + ([("harmfulness",)] if p.harmfulness else [])
        for path in named:
            group = p.comparisons[path[1]] if len(path) > 1 else p.harmfulness
            yield from self._set_problems(path, group.sets if group else ())
        for name, how in p.comparisons.items():
            yield from self._comparison_problems(name, how)
        for name, message in checks.problems(self._checks):
            yield ("checks", name), message, f"checks are {', '.join(self._checks)}"
        if p.frontier:
            for axis, message in frontier.problems(p.frontier, p.comparisons, p.inputs, dict.fromkeys(self._check_names)):
                yield ("frontier", axis), message, "write a comparison's name, or SET.CHECK"

    def identity(self) -> Mapping[str, Any]:
        """Return the names that stand in the figures, the standard checks, the files read and the judges' texts."""
        p = self.params
        given = self.context.constitution
        judged = bool(given) and any(not how.instruction or how.few_shot for how in p.comparisons.values())
        return {
            "format": FORMAT_VERSION,
            "models": list(p.models),
            "anchors": {name: [how.against, how.anchor] for name, how in p.comparisons.items()},
            "checks": {name: check.model_dump(mode="json") for name, check in self._checks.items()},
            "files": {name: _digest(path) for name, path in self.sources().items()},
            "constitution": _texts(given) if given is not None and judged else None,
            **({"lm_eval": harness.identity()} if p.lm_eval else {}),
        }

    def sources(self) -> Mapping[str, Any]:
        """Return the files of questions."""
        return {f"choices.{n}": self.context.base_dir / c.source for n, c in self.params.choices.items() if c.source}

    async def measure(self, job: Job, llms: LLMs) -> Mapping[str, Any]:
        """Return the figures and write the rows behind them."""
        p = self.params
        sets = {name: job.inputs[step].pylist(limit=p.limit) for name, step in p.inputs.items()}
        rows = await answers.ask_models(llms, p.models, sets, p.sampling.sampling(), p.samples, p.system)
        refuse_failures(rows, "answers", p.max_failed)
        groups = answers.by_model_and_set(rows)
        figures: dict[str, Any] = {"models": self._rates(groups)}
        figures |= await self._choices(job, llms)
        figures |= await self._perplexity(job, llms)
        if p.lm_eval:
            figures["lm_eval"] = await harness.run_tasks(p.lm_eval, p.models, llms, self.context.seed)
        figures |= await self._comparisons(job, llms, groups)
        if p.harmfulness:
            await harmfulness.rate(p.harmfulness, rows, llms)
            refuse_failures(rows, "answers or ratings", p.max_failed)
            figures["harmfulness"] = self._harmfulness(groups)
        _write(job, "responses", answers.COLUMNS, rows)
        figures["failed"] = {f"{m}.{s}": n for (m, s), g in groups.items() if (n := sum(bool(r["failed"]) for r in g))}
        if p.frontier:
            figures["frontier"] = frontier.frontier(figures, p.frontier)
            draw_frontier(figures["frontier"], job.out_dir / FRONTIER_PICTURE)
        return figures

    @property
    def _checks(self) -> dict[str, PatternCheck]:
        return {**(checks.STANDARD if self.params.standard_checks else {}), **self.params.checks}

    @property
    def _check_names(self) -> list[str]:
        return [*self._checks, *OWN_CHECKS]

    def _set_problems(self, path: tuple[str | int, ...], sets: Sequence[str]) -> Iterator[Problem]:
        for i, name in enumerate(sets):
            if name not in self.params.inputs:
                yield (*path, "sets", i), f"names no set of prompts, got {name!r}", f"sets are {', '.join(self.params.inputs)}"

    def _comparison_problems(self, name: str, how: ComparisonParams) -> Iterator[Problem]:
        for path, message, hint in self._pair_judge(how).problems():
            yield ("comparisons", name, *path), message, hint
        for field in ("against", "anchor"):
            value = getattr(how, field)
            if value is not None and value not in self.params.models:
                message = f"isn't among the models that are measured, got {value!r}"
                yield ("comparisons", name, field), message, f"models are {', '.join(self.params.models)}"
        if len(self.params.models) < 2:
            yield ("comparisons", name), "a comparison needs two models", "add one to `models`"

    def _pair_judge(self, how: ComparisonParams) -> PairJudge:
        return PairJudge(how, self.context.constitution, self.context.seed, how.instruction)

    def _rates(self, groups: Mapping[tuple[str, str], Sequence[Row]]) -> dict[str, dict[str, Any]]:
        tests = checks.compiled(self._checks)
        found: dict[str, dict[str, Any]] = {model: {} for model in self.params.models}
        for (model, name), rows in groups.items():
            answers.mark(rows, tests)
            found[model][name] = answers.rates(rows, list(tests))
        return found

    def _harmfulness(self, groups: Mapping[tuple[str, str], Sequence[Row]]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for (model, name), rows in groups.items():
            mean = harmfulness.mean_rating(rows, self.context.seed)
            if mean is not None:
                found.setdefault(model, {})[name] = mean
        return found

    async def _comparisons(self, job: Job, llms: LLMs, groups: Mapping[tuple[str, str], Sequence[Row]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        kept: list[Row] = []
        for name, how in self.params.comparisons.items():
            rows = await comparisons.compare(name, how, groups, llms, self._pair_judge(how))
            anchor = how.anchor or how.against or self.params.models[0]
            found[name] = comparisons.figures(rows, anchor, how.prior, self.context.seed)
            refuse_failures(rows, f"comparisons for {name}", self.params.max_failed)
            kept += rows
        if kept:
            _write(job, "comparisons", comparisons.COLUMNS, kept)
        return {"comparisons": found} if found else {}

    async def _choices(self, job: Job, llms: LLMs) -> dict[str, Any]:
        found: dict[str, Any] = {}
        kept: list[Row] = []
        for name, how in self.params.choices.items():
            rows = job.inputs[how.input].pylist() if how.input else list(choices.read(self.context.base_dir / str(how.source)))
            for model in self.params.models:
                scored = await choices.score(name, how, rows[: how.limit], model, llms)
                refuse_failures(scored, f"questions of {name} to {model}", self.params.max_failed)
                found.setdefault(name, {})[model] = choices.figures(scored)
                kept += scored
        if kept:
            _write(job, "choices", choices.COLUMNS, kept)
        return {"choices": found} if found else {}

    async def _perplexity(self, job: Job, llms: LLMs) -> dict[str, Any]:
        found: dict[str, Any] = {}
        kept: list[Row] = []
        for name, how in self.params.perplexity.items():
            texts = job.inputs[how.input].pylist(limit=how.limit)
            by_model = {}
            for model in self.params.models:
                by_model[model] = await perplexity.score(name, how, texts, model, llms)
                refuse_failures(by_model[model], f"texts of {name} under {model}", self.params.max_failed)
                kept += by_model[model]
            first = by_model[self.params.models[0]]
            found[name] = {model: perplexity.figures(rows, first, self.context.seed) for model, rows in by_model.items()}
        if kept:
            _write(job, "texts", perplexity.COLUMNS, kept)
        return {"perplexity": found} if found else {}


def _write(job: Job, folder: str, columns: Mapping[str, Any], rows: Sequence[Row]) -> None:
    from caiflow.engine.rows import RowsWriter

    with RowsWriter(job.out_dir / folder, dict(columns)) as out:
        out.write_rows([{name: row.get(name) for name in columns} for row in rows])


def _digest(path: Any) -> str:
    from caiflow.engine.file_identity import file_digest

    return file_digest(path)


def _texts(constitution: Any) -> Any:
    principles = [[p.id, p.judge, p.weight] for p in constitution.principles]
    return [principles, [[e.principle, e.a, e.b, e.answer, e.thought, list(e.prompt)] for e in constitution.few_shot_judge]]
