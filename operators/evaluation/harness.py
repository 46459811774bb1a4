"""Tasks of the LM Evaluation Harness, through its own library, asked of the run's own engines.

Owns the way between the two: the harness asks for likelihoods and texts, the run's models answer, and every answer is kept in
the ledger. What a task is and how it is scored is the harness's. Tasks may hold code, so a spec names those that are installed,
and only the environment variable below adds others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import Finding, WrongValue
from caiflow.engine.llm.base import Sampling
from caiflow.engine.machine import pip_command
from caiflow.engine.operator import Ask, LLMs, RowLLM
from caiflow.engine.rows.columns import Row
from caiflow.operators.evaluation.attempts import attempted, refuse_failures
from caiflow.operators.evaluation.params import HarnessParams
from caiflow.operators.measures.statistics import Z_95

if TYPE_CHECKING:
    import asyncio  # it takes long to import, and a spec that is only checked needs none

FOLDER = "LM_EVAL_INCLUDE_PATH"
"""The environment variable with a folder of further tasks."""
_LONGEST_ANSWER = 256


def problems() -> Iterator[Finding]:
    """Yield a finding where the library isn't there."""
    if find_spec("lm_eval") is None:
        hint = f"run `{pip_command('lm-eval')}`, or leave `lm_eval` out"
        yield Finding(("lm_eval",), "the library `lm_eval` isn't installed", hint)


def identity() -> dict[str, Any]:
    """Return what defines the tasks beside their names: the library's version and the content of the folder of others."""
    from importlib.metadata import PackageNotFoundError, version

    from caiflow.engine.store.file_digests import folder_manifest

    try:
        installed: str | None = version("lm_eval")
    except PackageNotFoundError:
        installed = None
    folder = os.environ.get(FOLDER)
    return {"version": installed, "tasks": folder_manifest(Path(folder))["digest"] if folder else None}


async def run_tasks(how: HarnessParams, models: Sequence[str], llms: LLMs, seed: int) -> dict[str, Any]:
    """Return the figures of every task by model: {MODEL: {TASK: {METRIC: {mean, stderr, low, high, n}}}}.

    Raises:
        ValueError: a task is unknown.
        StepError: a model can't answer a question; the harness can't leave one out.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    found = {}
    for model in models:
        found[model] = await asyncio.to_thread(_evaluated, how, model, llms, loop, seed)
    return found


def _evaluated(how: HarnessParams, model: str, llms: LLMs, loop: asyncio.AbstractEventLoop, seed: int) -> dict[str, Any]:
    """Have the harness run in this thread, its questions answered in the loop's."""
    from difflib import get_close_matches

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=os.environ.get(FOLDER))
    for task in how.tasks:
        if task not in manager.all_tasks:
            near = get_close_matches(task, manager.all_tasks, n=1)
            hint = f"did you mean {near[0]}?" if near else f"`lm_eval ls tasks` lists them; {FOLDER} adds a folder"
            raise WrongValue(f"lm_eval.tasks: the harness has no task of that name, got {task!r}", hint)
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    results = simple_evaluate(
        _harness_model(model, llms, loop), tasks=list(how.tasks), num_fewshot=how.few_shot, limit=how.limit,
        task_manager=manager, log_samples=False, bootstrap_iters=1000, **seeds,
    )  # fmt: skip
    counts = results["n-samples"]
    return {task: figures(values, counts.get(task, {}).get("effective")) for task, values in results["results"].items()}


def figures(values: Mapping[str, Any], n: int | None) -> dict[str, Any]:
    """Return a task's metrics, each with its normal 95% interval where the harness gives a standard error."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name, _, how = key.partition(",")
        if not how or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{name}_stderr,{how}")
        error = float(error) if isinstance(error, int | float) else None
        ends = {"low": value - Z_95 * error, "high": value + Z_95 * error} if error is not None else {}
        shown = name if how == "none" else f"{name} ({how})"
        found[shown] = {"mean": float(value), "stderr": error, **ends, "n": n}
    return found


def _harness_model(model: str, llms: LLMs, loop: asyncio.AbstractEventLoop) -> Any:
    """Return one of the run's models in the form that the harness asks."""
    from asyncio import run_coroutine_threadsafe

    from lm_eval.api.model import LM

    class EngineModel(LM):  # type: ignore[misc]  # the base is the optional library's, so the class is made here
        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Return the log-probability of each continuation after its context, and whether it is greedy."""
            return [(row["sum"], row["greedy"]) for row in self._answers(requests, _continuation)]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """Return the log-probability of each whole text after one BOS; the harness's own `hf` model may add a second."""
            return [row["sum"] for row in self._answers(requests, _whole)]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Return each context's answer."""
            return [row["text"] for row in self._answers(requests, _text)]

        def _answers(self, requests: Sequence[Any], ask: Ask) -> list[Row]:
            rows = [{"uid": f"{one.task_name}/{one.doc_id}/{one.idx}", "args": one.args} for one in requests]
            answers = llms.map("lm_eval", model, rows, attempted(ask, {}))
            found = run_coroutine_threadsafe(answers, loop).result()
            asked = [{**row, **answer} for row, answer in zip(rows, found, strict=True)]
            refuse_failures(asked, f"questions to {model}", 0, "the harness can't leave one out: leave its task out")
            return found

    return EngineModel()


async def _continuation(row: Row, llm: RowLLM) -> Row:
    context, continuation = row["args"]
    answer = await llm.score(context, prefill=continuation)
    return {"sum": sum(answer.prompt_logprobs or ()), "greedy": bool(answer.greedy)}


async def _whole(row: Row, llm: RowLLM) -> Row:
    answer = await llm.score(row["args"][0])
    return {"sum": sum(answer.prompt_logprobs or ())}


async def _text(row: Row, llm: RowLLM) -> Row:
    context, asked = row["args"]
    answer = await llm.complete(context, sampling(asked))
    return {"text": answer.text}


def sampling(asked: Mapping[str, Any]) -> Sampling:
    """Return the harness's settings of an answer as this project's; without `do_sample` it is greedy."""
    until = asked.get("until") or []
    return Sampling(
        temperature=float(asked.get("temperature") or 0.0) if asked.get("do_sample", True) else 0.0,
        top_p=float(asked.get("top_p") or 1.0),
        max_tokens=int(asked.get("max_gen_toks") or asked.get("max_new_tokens") or _LONGEST_ANSWER),
        stop=tuple([until] if isinstance(until, str) else filter(None, until)),
    )
