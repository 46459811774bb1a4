"""The ids that an engine sampled stay beside the text, and a training says where what it learns isn't those."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.flow.stream import Flow
from caiflow.engine.health import Meter, notes
from caiflow.engine.llm.base import Completion
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.llm.render import Renderer
from caiflow.engine.operator import StepContext
from caiflow.engine.rows.folder import RowsWriter
from caiflow.engine.store.ledger import Ledger
from caiflow.engine.store.sampled import keep_sampled, sampled_ids, sampled_name
from caiflow.engine.training.models import load_tokenizer
from caiflow.engine.training.sampled import KNOWN, PARTING
from caiflow.engine.training.tokens import as_messages, reply_ids
from support.flows import Ask, params, step, write_source
from support.runs_without_ray import AskedLink
from support.small_models import job, small_model
from support.trainings import TRAINERS


def said(text: str, **more: Any) -> Any:
    return lambda request: Completion(text, "stop", 3, 2, **more)


def asked(folder: Path, link: AskedLink, **fields: Any) -> tuple[Ledger, Ledger]:
    """Ask about one row; return the ledger of answers and that of sampled ids, opened again."""
    flow_step = replace(step("answer", Ask(params(), times=2), "source"), **fields)
    names = ("answer-m", sampled_name("m@1"))

    async def go() -> None:
        with RowsWriter(folder / "out") as out, Ledger(folder, names[0]) as answers, Ledger(folder, names[1]) as ids:
            async with EngineClient([link]) as client:
                ledgers = dict(zip(names, (answers, ids), strict=True))
                await Flow([flow_step], ledgers, {"m": client}, {"answer": out}).run(write_source(folder / "in", ["Why?"]))

    asyncio.run(go())
    return Ledger(folder, names[0]), Ledger(folder, names[1])


def test_what_an_engine_sampled_is_kept_by_its_words_and_not_in_rows_or_answers(tmp_path: Path) -> None:
    kept, ids = asked(tmp_path / "a", AskedLink(says=said("So.", ids=(7, 8, 2))))
    plain, none = asked(tmp_path / "b", AskedLink(says=said("So.")))
    assert len(kept) == 3
    assert {name: kept.get(name) for name in kept} == {name: plain.get(name) for name in plain}, "keys and answers are as ever"
    assert sampled_ids(ids, "So.") == [7, 8, 2]
    assert len(none) == 0
    assert len(asked(tmp_path / "c", AskedLink(says=said("So.", ids=(7,))), served=True)[1]) == 0


TEXTS = ("Find a cake.", "Find the car and", "Bake it. (A)", "Not mine.")


@pytest.mark.parametrize("trainer", ["sft", "dpo", "reward"])
def test_a_training_says_how_many_of_the_models_own_replies_it_learns_otherwise_and_where(tmp_path: Path, trainer: str) -> None:
    """One reply as it is learnt, one cut off at `max_tokens`, one in other tokens, one that isn't the model's."""
    kind, params_type, fields = TRAINERS[trainer]
    model = small_model(tmp_path / "model")
    renderer = Renderer(load_tokenizer(model))
    learnt = {text: reply_ids(renderer, as_messages("Q?"), {"role": "assistant", "content": text})[1] for text in TEXTS}
    letters = [*(number for sign in TEXTS[2] for number in renderer.words(sign)), learnt[TEXTS[2]][-1]]
    with Ledger(tmp_path / "ledgers", sampled_name(model.identity)) as ledger:
        for text, ids in zip(TEXTS, (learnt[TEXTS[0]], learnt[TEXTS[1]][:-1], letters), strict=False):
            keep_sampled(ledger, text, ids)
    replies = [{"response": text, "chosen": text, "rejected": "No."} for text in TEXTS]
    pairs = [{"uid": f"u{at}", "prompt": f"Q{at}?", **reply} for at, reply in enumerate(replies)]
    done = job(tmp_path, {"rows": pairs}, base=model)
    done.ledger_dir = tmp_path / "ledgers"
    operator = kind(params_type.model_validate({"input": "rows", "model": "base", **fields, "max_steps": 1}), StepContext())
    operator.train(done)
    assert (done.metrics[KNOWN], done.metrics[PARTING]) == (3, 1)
    readings = Meter(operator.measures()).readings(done.metrics, done.uids)
    (note,) = [note for note in notes(operator.measures(), readings) if note["measure"] == "parting_tokens"]
    assert "1 of 3 (33%)" in note["message"]
    assert note["message"].endswith("(the first: row u2: token 1, sampled 'ake it', learnt 'ake it. (A)')")
    assert note["uids"] == ["u2"]
