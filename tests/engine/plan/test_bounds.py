"""Where a run may ask less than a plan counts, the plan says that its counts are bounds; elsewhere the run asks as many."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from caiflow.engine.errors import StepError
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from support.runs_without_ray import AskedLink, carry_out, write_spec

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
