"""Where a run may ask less than a plan counts, the plan says that its counts are bounds; elsewhere the run asks as many."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import Completion, Request
from caiflow.engine.plan.changes import SERVERS
from caiflow.engine.plan.components import COMPONENTS, Resolver
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.ledger import Ledger
from support.runs_without_ray import AskedLink, carried_out, carry_out, write_spec

PROMPTS = ["Say 0.", "Say 1.", "Say 2."]
PRINCIPLES = ["What is unkind?", "What is untrue?"]


def written(folder: Path, *, answer: str = "", prompts: list[str] = PROMPTS, principles: list[str] = PRINCIPLES) -> Path:
    """Write the spec, with further parameters of the step `answer`; return its path."""
    spec = write_spec(folder, prompts, principles)
    spec.write_text(spec.read_text().replace("input: rows, model: m,", f"input: rows, model: m,{answer}"))
    return spec


def planned(spec: Path, store: Store) -> dict[str, tuple[int | None, bool]]:
    """Return the calls of the two steps that ask, each with whether they are a bound."""
    return {step.name: (step.calls, step.at_most) for step in make_plan(load_spec(spec), store).steps[1:3]}


def asked(spec: Path, store: Store, most: int = 10**9) -> int:
    """Return how many calls a run makes, be it to its end or until it is cut off."""
    link = AskedLink(most)
    with suppress(StepError):
        carry_out(spec, store, link)
    return len(link.answered)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def damage(store: Store, op: str) -> None:
    """Damage the last record that the operator's ledger holds."""
    (path,) = store.ledger_dir.glob(f"{op}-*/*.seg")
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])


def test_critiques_of_answers_that_come_out_as_they_were_aren_t_asked_again(tmp_path: Path, store: Store) -> None:
    asked(written(tmp_path), store)
    spec = written(tmp_path, answer=" sampling: {max_tokens: 99},")
    assert planned(spec, store) == {"answer": (3, False), "critique": (3, True)}
    assert asked(spec, store) == 3


def test_the_critique_of_an_answer_that_was_damaged_may_be_there_still(tmp_path: Path, store: Store) -> None:
    spec = written(tmp_path)
    carry_out(spec, store, AskedLink(), sample=2)
    asked(spec, store, most=0)
    damage(store, "generate")
    assert planned(spec, store) == {"answer": (2, False), "critique": (2, True)}
    assert asked(spec, store) == 3


def test_answers_to_rows_that_are_to_be_loaded_may_be_there_already(tmp_path: Path, store: Store) -> None:
    asked(written(tmp_path), store)
    spec = written(tmp_path, prompts=PROMPTS[:2])
    assert planned(spec, store) == {"answer": (2, True), "critique": (2, True)}
    assert asked(spec, store) == 0


def test_of_several_calls_for_a_row_some_may_be_there_already(tmp_path: Path, store: Store) -> None:
    spec = written(tmp_path, answer=" samples: 2, samples_as: rows,")
    asked(spec, store, most=0)
    assert planned(spec, store) == {"answer": (6, False), "critique": (6, True)}
    asked(spec, store, most=5)
    assert planned(spec, store) == {"answer": (2, True), "critique": (6, True)}
    assert asked(spec, store) == 1 + 6


@pytest.mark.parametrize(
    ("answer", "steps"),
    [
        ("samples: 3, samples_as: rows,", ["critique"]),
        ("samples: 3,", ["judge, pairs: all, swap: true"]),
        ("samples: 2,", ["judge"]),
        ("", ["revise, rounds: 2, rows: each", "critique"]),
        ("samples: 2, samples_as: rows,", ["revise, rounds: 2, rows: each", "critique"]),
    ],
)
def test_the_calls_of_rows_that_are_loaded_are_those_of_rows_to_load(
    answer: str, steps: list[str], tmp_path: Path, store: Store
) -> None:
    spec = written(tmp_path, answer=f" {answer}")
    begins, inputs = spec.read_text().split("  critique:")[0].replace("rules.yaml", "harmless"), ["answer", "s0", "s1"]
    lines = [f"  s{n}: {{input: {inputs[n]}, model: m, op: {step}}}\n" for n, step in enumerate(steps)]
    spec.write_text(begins + "".join(lines))
    to_load = make_plan(load_spec(spec), store).steps
    with suppress(KeyError):  # it has no step `kept`
        asked(spec, store, most=0)
    loaded = make_plan(load_spec(spec), store).steps
    assert (to_load[0].state, loaded[0].state) == ("run", "cached")
    assert [(told.rows, told.calls) for told in loaded] == [(told.rows, told.calls) for told in to_load]


def test_what_can_be_counted_is_no_bound(tmp_path: Path, store: Store) -> None:
    assert planned(written(tmp_path), store)["answer"] == (3, False)
    asked(written(tmp_path), store)
    spec = written(tmp_path, principles=["What is unclear?", "What is untold?"])
    assert planned(spec, store) == {"answer": (0, False), "critique": (3, False)}
    assert asked(spec, store) == 3
    assert planned(spec, store) == {"answer": (0, False), "critique": (0, False)}


def echo(request: Request) -> Completion:
    """Answer with the last turn."""
    return Completion(request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"])


def made_older(store: Store, folder: Path, resolver: Resolver, word: str) -> None:
    """Leave of a run what a version left that took an answer without a text for an empty one: that of the rows with a word."""
    for place in store.ledger_dir.iterdir():
        with Ledger(store.ledger_dir, place.name) as ledger:
            for key in list(ledger):
                kept = {name: value for name, value in (ledger.get(key) or {}).items() if name != "read"}
                kept["out"] = [{**row, "response": ""} if row.get("response") == word else row for row in kept["out"]]
                ledger.append(key, kept)
    shutil.rmtree(store.artifacts_dir)
    steps = {step.name: resolver.components(step) or {} for step in resolver.order}
    older = {name: {key: value for key, value in own.items() if key != SERVERS} for name, own in steps.items()}
    (folder / "run" / COMPONENTS).write_text(json.dumps(older))


def test_what_an_older_version_kept_of_a_server_as_empty_is_asked_again_once(tmp_path: Path, store: Store) -> None:
    spec = written(tmp_path)
    resolver, _ = carried_out(spec, store, AskedLink(says=echo))
    made_older(store, tmp_path, resolver, "Say 1.")
    with suppress(StepError):
        carry_out(spec, store, AskedLink(0))  # the source is loaded
    _, answer, critique, _ = make_plan(load_spec(spec), store).steps
    assert (answer.calls, critique.calls) == (1, 1)
    assert answer.reason.endswith(
        "1 of 3 rows: what an older version kept of servers' answers as empty texts or lists is asked again"
    )
    link = AskedLink(says=echo)
    carry_out(spec, store, link)
    assert [echo(request).text for request in link.answered] == ["Say 1."]
    assert asked(spec, store) == 0
