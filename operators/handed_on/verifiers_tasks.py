"""The prompts of an evaluation as a task set of verifiers (0.4), its checks as the rubric: a module and the tasks beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows
from caiflow.operators.evaluation.checks import PatternCheck
from caiflow.operators.handed_on.checks_code import checks_code

_MODULE = '''\
"""The prompts of the caiflow evaluation `{step}` as tasks of verifiers: `vf-eval {name}`, with this folder in PYTHONPATH.

Each check is a metric, 1 where the reply meets it; what is to be rewarded is yours to say, by weights:
`--env.taskset.task.weights '{{"refusal_phrase": -1}}'`.
"""

import json
import re
from pathlib import Path

import verifiers.v1 as vf

__all__ = ["Prompts"]

{checks}

class Prompt(vf.TaskData):
    """A prompt and the set that it is of."""

    set: str


class Weights(vf.TaskConfig):
    """What of a reply is rewarded."""

    weights: dict[str, float] = {{}}
    """Of each check in the reward, below 0 where meeting it is bad; the others are metrics alone."""


class Reply(vf.Task[Prompt, vf.State, Weights]):
    """A reply to a prompt."""

    @property
    def key(self):
        return self.data.id

    @vf.metric
    async def checks(self, trace):
        """Return 1 for each check that the reply meets, else 0."""
        return {{name: float(met(trace.last_reply, name)) for name in CHECKS}}

    @vf.reward
    async def rubric(self, trace):
        """Return the weighted sum of the checks that have a weight."""
        weights = self.config.weights
        if unknown := weights.keys() - CHECKS.keys():
            raise ValueError(f"no checks {{sorted(unknown)}}; there are {{list(CHECKS)}}")
        return sum(weight * met(trace.last_reply, name) for name, weight in weights.items())


class Choice(vf.TasksetConfig):
    """Which prompts are taken."""

    sets: list[str] = []
    """Only those of these sets; empty takes all."""
    task: Weights = Weights()


class Prompts(vf.Taskset[Reply, Choice]):
    """The prompts that the evaluation asked, each once."""

    def load(self):
        with open(Path(__file__).with_suffix(".jsonl"), encoding="utf-8") as lines:
            for line in lines:
                data = Prompt(**json.loads(line))
                if not self.config.sets or data.set in self.config.sets:
                    yield Reply(data, self.config.task)
'''


def files(step: str, made: Path, checks: Mapping[str, PatternCheck]) -> Iterator[tuple[str, str]]:
    """Yield the module and its tasks, by file name; nothing where no model was asked for answers."""
    if not any((made / "responses").glob("*.parquet")):
        return
    name = re.sub(r"\W", "_", f"{step}_tasks")
    tasks: dict[str, str] = {}
    for batch in Rows(made / "responses").batches():
        for row in batch.to_pylist():
            task = _task(row)
            tasks.setdefault(task["id"], json.dumps(task, ensure_ascii=False))
    yield f"{name}.jsonl", "".join(f"{line}\n" for line in tasks.values())
    yield f"{name}.py", _MODULE.format(step=step, name=name, checks=checks_code(checks))


def _task(row: Row) -> Row:
    """Return a row's prompt in the form of the tasks; a single turn is a plain text, and what the system says stands apart."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["prompt"]]
    system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else None
    single = len(turns) == 1 and turns[0]["role"] == "user"
    prompt = turns[0]["content"] if single else turns
    return {"id": f"{row['set']}/{row['uid']}", "set": row["set"], "prompt": prompt, "system_prompt": system}
