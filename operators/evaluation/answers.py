"""The answers of each model to each set of prompts, and the rates at which they meet the checks.

Owns how evaluated models are asked and how answers become rates. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from caiflow.engine.identity import key
from caiflow.engine.operator import LLMs, RowLLM, together
from caiflow.engine.rows.columns import Row
from caiflow.operators.evaluation.attempts import answered, attempted
from caiflow.operators.evaluation.checks import OWN_CHECKS, Test, duplicates, is_repetitive
from caiflow.operators.evaluation.params import EvaluateParams
from caiflow.operators.judging.prompts import turns, with_system
from caiflow.operators.measures.sequence import anytime
from caiflow.operators.measures.statistics import wilson
from caiflow.operators.measures.texts import is_english

COLUMNS: Mapping[str, Any] = {
    "uid": "text",
    "model": "text",
    "set": "text",
    "sample": "integer",
    "prompt": "messages",
    "response": "text",
    "truncated": "flag",
    "failed": "text",
    "checks": "texts",
    "harmfulness": "number",
    "grades": "json",
}
"""The columns of the rows kept beside the figures; `failed` says why there is no answer, `checks` names those met,
and `grades` has each grader's."""
Groups = Mapping[tuple[str, str], Sequence[Row]]
"""Answers by model and set."""
_ROUND = 32
"""Prompts of a set that are asked in one round at least, where figures are to become sharp."""


async def ask_models(llms: LLMs, params: EvaluateParams, sets: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Return every model's answers to every prompt, one row each, in the order of models, sets, prompts, samples."""
    sampling, samples = params.sampling.sampling(), params.samples

    async def ask(row: Row, llm: RowLLM) -> Row:
        prompt = with_system(turns(row["prompt"]), params.system)
        return {"answers": await together(answer({"prompt": prompt, "sample": i}, llm) for i in range(samples))}

    async def once(row: Row, llm: RowLLM) -> Row:
        given = await llm.chat(row["prompt"], sampling, sample=row["sample"])
        return {"response": given.text, "truncated": given.finish == "length"}

    answer = attempted(once, {"response": "", "truncated": False})
    llms.expect(len(params.models) * sum(map(len, sets.values())))
    found: list[Row] = []
    for model in params.models:  # one after the other: they may not fit beside each other
        given = await together(llms.map("answers", model, rows, ask) for rows in sets.values())
        for (name, rows), answers in zip(sets.items(), given, strict=True):
            pairs = zip(rows, answers, strict=True)
            found += [
                {**row, **given_answer, "model": model, "set": name, "prompt": turns(row["prompt"]), "sample": i}
                for row, several in pairs
                for i, given_answer in enumerate(several["answers"])
            ]
    return found


class Asked(NamedTuple):
    """The answers, and of each set how many prompts were asked and whether its figures are sharp."""

    rows: list[Row]
    prompts: Mapping[str, int]
    sharp: Mapping[str, bool]


async def ask_until(llms: LLMs, params: EvaluateParams, sets: Mapping[str, Sequence[Row]], sharpening: Sharpening) -> Asked:
    """Return the models' answers to as many prompts of each set as make its figures sharp.

    Prompts come in an order that the seed draws, in rounds that follow from the answers alone: a run that was cut off finds
    these in the ledger, and asks the same prompts.
    """
    seed = str(sharpening.seed)
    order = {name: sorted(rows, key=lambda row: key("until", seed, str(row["uid"]))) for name, rows in sets.items()}
    found: list[Row] = []
    asked, sharp = dict.fromkeys(sets, 0), dict.fromkeys(sets, False)
    while going := [name for name in sets if not sharp[name] and asked[name] < len(order[name])]:
        sizes = {name: max(_ROUND, asked[name] // 4) for name in going}
        part = {name: order[name][asked[name] : asked[name] + sizes[name]] for name in going}
        new = await ask_models(llms, params, part)
        await sharpening.mark(new)
        found += new
        asked |= {name: asked[name] + len(part[name]) for name in going}
        groups = by_model_and_set(found)
        sharp |= {name: all(_sharp(groups[model, name], name, sharpening) for model in params.models) for name in going}
    place = {(model, name): number for number, (model, name) in enumerate((m, n) for m in params.models for n in sets)}
    return Asked(sorted(found, key=lambda row: place[row["model"], row["set"]]), asked, sharp)


class Sharpening(NamedTuple):
    """What has to be sharp: the checks and graders of each set, how many points of 1 their intervals may reach, who marks."""

    names: Mapping[str, Sequence[str]]
    most: float
    mark: Callable[[list[Row]], Awaitable[None]]
    seed: int
    graders: Collection[str] = ()
    """Those of the names that are graders."""


def _sharp(rows: Sequence[Row], of_set: str, sharpening: Sharpening) -> bool:
    ends = [at_any_time(_rate(looked_at(rows, name, sharpening.graders), name)) for name in sharpening.names[of_set]]
    return all(end["n"] and max(end["rate"] - end["low"], end["high"] - end["rate"]) <= sharpening.most for end in ends)


def at_any_time(figure: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rate with an interval that holds however the number of its prompts came about."""
    low, high = anytime((figure["rate"] or 0.0) * figure["n"], figure["n"])
    return {**figure, "low": low, "high": high}


def looked_at(rows: Sequence[Row], name: str, graders: Collection[str]) -> list[Row]:
    """Return the answers of which it is known whether they meet a check, or a grader: it read them, and its reply was read."""
    told = answered(rows)
    return [row for row in told if (row.get("grades") or {}).get(name) is not None] if name in graders else told


def mark(rows: Sequence[Row], tests: Mapping[str, Test]) -> None:
    """Write into `checks` of each row of one model and set which checks its answer meets; failed rows meet none."""
    for row, duplicate in zip(rows, duplicates(rows), strict=True):
        own = {"truncated": row["truncated"], "repetitive": is_repetitive(row), "duplicate": duplicate}
        met = [name for name, test in tests.items() if test(row)] + [name for name, found in own.items() if found]
        row["checks"] = [] if row["failed"] else met


def rates(rows: Sequence[Row], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return, by check, the rate at which the answers of one model and set meet it, with its Wilson interval.

    Several samples of a prompt are averaged first and the interval is that of as many trials as there are prompts, since
    answers to one prompt aren't independent.
    """
    told = answered(rows)
    return {name: _rate(told, name) for name in [*names, *OWN_CHECKS]}


def _rate(rows: Sequence[Row], name: str) -> dict[str, Any]:
    by_prompt: dict[str, list[bool]] = {}
    for row in rows:
        by_prompt.setdefault(row["uid"], []).append(name in row["checks"])
    shares = [sum(met) / len(met) for met in by_prompt.values()]
    return wilson(min(sum(shares), len(shares)), len(shares)).as_dict()


def not_english(rows: Sequence[Row]) -> float | None:
    """Return the share of answers in another language than English; None where no answer's language can be told."""
    told = [found for row in answered(rows) if (found := is_english(row["response"])) is not None]
    return told.count(False) / len(told) if told else None


def by_model_and_set(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Return the answers in groups of one model and one set, in order."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["set"]), []).append(row)
    return groups
