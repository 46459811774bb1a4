"""Any text that a format can hold comes through all of it unchanged: loaded, asked, answered, judged and handed on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiflow.engine.llm.base import Answer, Completion, Request
from caiflow.engine.lookback.export import export
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows
from caiflow.engine.spec.permissions import Permissions
from caiflow.engine.store.artifacts import Store
from caiflow.operators.formats.parse import FORMATS
from caiflow.operators.judging.prompts import judge_message
from support.commands import command_here
from support.loading import TEMPTING, said, write
from support.runs_without_ray import AskedLink, carried_out
from support.table_runs import leave_run
from support.tiers import few_at_once

SPEC = """\
caiflow: 1
name: whole
constitution: [{id: kind, judge: Which is kinder?, critique: What is unkind?, revision: Make it kind.}]
models: {m: {source: served, base_url: "http://127.0.0.1:9/v1"}}
steps:
  rows:     LOAD
  answers:  {op: generate, input: rows, model: m, retries: 0, samples: [{max_tokens: 1}, {max_tokens: 2}]}
  judged:   {op: judge, input: answers, model: m, retries: 0}
  critique: {op: critique, input: judged, model: m, retries: 0}
  revised:  {op: revise, input: critique, model: m, retries: 0}
"""


class Asked(NamedTuple):
    """A question, and two answers."""

    question: str
    better: str
    worse: str


class Way(NamedTuple):
    """How a format says it: the records of one question, what is read of them, and the kinds of files that can hold them."""

    records: Callable[[Asked], Sequence[Mapping[str, Any]]]
    reads: Mapping[str, str]
    kinds: Sequence[str] = ("jsonl", "json", "parquet")


FLAT = ("jsonl", "json", "csv", "parquet")
RESPONSE = {"response": "better"}
PAIR = {"chosen": "better", "rejected": "worse"}


def chat(asked: Asked, answer: str) -> list[dict[str, str]]:
    return [*said(asked.question), *said(answer, "assistant")]


def shared(asked: Asked, *names: str) -> list[dict[str, str]]:
    who, what, human, model = names
    return [{who: human, what: asked.question}, {who: model, what: asked.better}]


def human(asked: Asked, answer: str) -> str:
    return f"\n\nHuman: {asked.question}\n\nAssistant: {answer}"


def nemo(asked: Asked, answer: str) -> str:
    return f"<extra_id_0>System\n\n<extra_id_1>User\n{asked.question}\n<extra_id_1>Assistant\n{answer}"


def message(asked: Asked, name: str, parent: str | None, role: str, text: str) -> dict[str, Any]:
    return {"message_id": name + asked.question, "parent_id": parent and parent + asked.question, "role": role, "text": text,
            "message_tree_id": asked.question, "rank": None}  # fmt: skip


WAYS: Mapping[str, Way] = {
    "prompt": Way(lambda a: [{"prompt": a.question, "completion": a.better}], RESPONSE, FLAT),
    "messages": Way(lambda a: [{"messages": chat(a, a.better)}], RESPONSE),
    "sharegpt": Way(lambda a: [{"conversations": shared(a, "from", "value", "human", "gpt")}], RESPONSE),
    "ultrachat": Way(lambda a: [{"prompt": a.question, "prompt_id": "1", "messages": chat(a, a.better)}], RESPONSE),
    "nemo": Way(
        lambda a: [{"system": "", "mask": "User", "conversations": shared(a, "from", "value", "User", "Assistant")}], RESPONSE
    ),
    "alpaca": Way(lambda a: [{"instruction": a.question, "input": "", "output": a.better}], RESPONSE, FLAT),
    "orca": Way(lambda a: [{"system_prompt": "", "question": a.question, "response": a.better}], RESPONSE, FLAT),
    "mt_bench": Way(lambda a: [{"turns": [a.question, a.better]}], {}),
    "preference": Way(lambda a: [{"prompt": a.question, "chosen": a.better, "rejected": a.worse}], PAIR, FLAT),
    "openai_preference": Way(
        lambda a: [
            {
                "input": {"messages": said(a.question)},
                "preferred_output": said(a.better, "assistant"),
                "non_preferred_output": said(a.worse, "assistant"),
            }
        ],
        PAIR,
    ),
    "hh": Way(lambda a: [{"chosen": human(a, a.better), "rejected": human(a, a.worse)}], PAIR, FLAT),
    "red_team": Way(lambda a: [{"transcript": human(a, a.better), "rating": 1}], RESPONSE, FLAT),
    "kto": Way(
        lambda a: [
            {"prompt": a.question, "completion": a.better, "label": True},
            {"prompt": a.question, "completion": a.worse, "label": False},
        ],
        PAIR,
        FLAT,
    ),
    "ranked": Way(
        lambda a: [{"prompt": a.question, "answers": [{"text": a.worse, "rank": 2}, {"text": a.better, "rank": 1}]}], PAIR
    ),
    "compared": Way(
        lambda a: [{"prompt": a.question, "response_0": a.worse, "response_1": a.better, "better_response_id": 1}], PAIR, FLAT
    ),
    "nemo_preference": Way(lambda a: [{"text": nemo(a, a.better)}, {"text": nemo(a, a.worse)}], PAIR, FLAT),
    "cai_conversation": Way(
        lambda a: [
            {
                "init_prompt": a.question,
                "init_response": a.worse,
                "critic_response": a.question,
                "revision_response": a.better,
            }
        ],
        {"response": "worse", "critique": "question", "revision": "better"},
        FLAT,
    ),
    "oasst": Way(
        lambda a: [
            {
                "message_tree_id": "t",
                "prompt": {
                    "text": a.question,
                    "role": "prompter",
                    "replies": [{"text": a.better, "role": "assistant", "replies": None}],
                },
            }
        ],
        RESPONSE,
    ),
    "oasst_messages": Way(
        lambda a: [message(a, "q", None, "prompter", a.question), message(a, "a", "q", "assistant", a.better)], RESPONSE, FLAT
    ),
    "table": Way(lambda a: [{"goal": a.question, "target": a.better}], {"goal": "question", "target": "better"}, FLAT),
}
TRANSCRIPTS = ("hh", "red_team", "nemo_preference")
"""These have turns within one text: they can't hold marks of turns, nor space around a turn."""


ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)
TEXTS = st.one_of(st.sampled_from(TEMPTING), ANY, st.builds("{}{}".format, st.sampled_from(TEMPTING), ANY))


def batches(name: str) -> st.SearchStrategy[list[Asked]]:
    """Return many questions at once: a run of all costs what a run of one does. The first few leave no doubt of the format."""
    held = _as_a_turn if name in TRANSCRIPTS else _said
    return st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=40, max_size=80).map(
        lambda many: [*PLAIN, *({one.question: one for one in starmap(held, many)}).values()]
    )


PLAIN = [Asked(f"What is {number}?", f"It is {number}.", "No idea.") for number in range(20)]


def _said(question: str, better: str, worse: str) -> Asked:
    """Return a question and two answers of these texts, each of which says something, and the answers not the same."""
    one = Asked(*(text if text.strip() else f"{text}." for text in (question, better, worse)))
    return one if one.better.strip() != one.worse.strip() else one._replace(worse=f"{one.worse}!")


def _as_a_turn(*given: str) -> Asked:
    return _said(*(re.sub(r"\r|<extra_id_|(Human|Assistant):", "", text).strip() for text in given))


def test_every_format_is_tried() -> None:
    assert WAYS.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", few_at_once(WAYS, "messages", "hh", "compared", "table"))
@settings(deadline=None, max_examples=2)
@given(st.data())
def test_any_text_comes_through_it_all(name: str, data: st.DataObject) -> None:
    asked, way = data.draw(batches(name)), WAYS[name]
    kind = data.draw(st.sampled_from(way.kinds))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        patch.setenv("CAIFLOW_HOME", str(root / "home"))
        write(root / f"some.{kind}", [dict(record) for one in asked for record in way.records(one)])
        load = {"op": "load", "source": f"some.{kind}", "format": name}
        load |= {"prompt": "{{ goal }}"} if name == "table" else {}
        (root / "spec.yaml").write_text(SPEC.replace("LOAD", json.dumps(load)))
        link = AskedLink(says=_Model(asked).says)
        resolver, _ = carried_out(root / "spec.yaml", Store(root / "home"), link)
        made = {step: Rows(artifact.path).pylist() for step, artifact in resolver.artifacts.items()}
        _compare(asked, way, made)
        leave_run(resolver, root / "run", {})
        assert _shown(root, "revised") == made["revised"]
        export(root / "run", root / "sent", Store(root / "home"), allowed=Permissions(paths=(root,)))
        again, _ = carried_out(root / "sent" / "spec.yaml", Store(root / "new"), AskedLink(says=_Model(asked).says))
        assert {step: Rows(artifact.path).pylist() for step, artifact in again.artifacts.items()} == made


def _compare(asked: Sequence[Asked], way: Way, made: Mapping[str, Sequence[Row]]) -> None:
    """Hold each step's rows against the questions, whose order they keep."""
    by_question = {one.question: one for one in asked}
    assert len(made["rows"]) == len(asked)
    for step, rows in made.items():
        for row in rows:
            assert [turn["role"] for turn in row["prompt"]] == ["user"], step
            one = by_question[row["prompt"][0]["content"]]
            if step == "rows":
                assert {column: row[column] for column in way.reads} == {
                    column: getattr(one, field) for column, field in way.reads.items()
                }
                continue
            assert (row["response"], row["responses"]) == (one.worse, [one.worse, one.better])
            assert step == "answers" or (row["chosen"], row["rejected"]) == (one.better, one.worse)
            assert step in ("answers", "judged") or row["critique"] == one.better.strip()
            assert step != "revised" or row["revision"] == one.better.strip()
    assert {step: len(rows) for step, rows in made.items()} == dict.fromkeys(made, len(asked))


class _Model:
    """Answers each question with its two answers, prefers the better one, and criticises and revises by it."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self._asked = {one.question: one for one in asked}
        self._judged = {}
        for one in asked:
            for answers, letter in (((one.better, one.worse), "A"), ((one.worse, one.better), "B")):
                asked_of_it = judge_message(said(one.question), "Which is kinder?", answers)  # quotes what poses as an option
                self._judged[asked_of_it["content"]] = letter

    def says(self, request: Request) -> Answer:
        """Answer; a text that isn't as it was is a KeyError."""
        content = request.prompt[0]["content"]  # type: ignore[index]
        if request.choices:
            letter = self._judged[content]
            return Completion("", logprobs={one: -0.1 if one == letter else -3.0 for one in request.choices})
        one = self._asked[content]
        if len(request.prompt) == 1:
            return Completion(one.worse if request.sampling.max_tokens == 1 else one.better)
        assert request.prompt[1] == {"role": "assistant", "content": one.worse}
        return Completion(one.better)


def _shown(root: Path, step: str) -> list[Row]:
    """Return a step's rows as the command prints them for other programs."""
    printed = command_here(root, "show", str(root / "run"), step, "--json", "--limit", "1000")
    assert printed.returncode == 0, printed.stderr
    return [json.loads(line) for line in printed.stdout.split("\n") if line]
