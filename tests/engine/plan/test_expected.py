"""A plan of a spec that never ran has rows and calls wherever its sources are local, and bounds elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.identity import key
from caiflow.engine.operator import Expected, Job, StepContext
from caiflow.engine.plan.components import Resolver
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.ledger import Ledger, ledger_name
from caiflow.operators.formats.params import LoadParams
from caiflow.operators.load import Load
from caiflow.operators.mixing.mix import Mix
from caiflow.operators.mixing.params import MixParams

STEPS = """\
  rows: {op: load, source: rows.jsonl}
  few: {op: load, source: rows.jsonl, limit: 4}
  pair: {op: generate, input: rows, model: base, samples: 3}
  choice: {op: judge, input: pair, model: base, pairs: all, swap: true}
  each: {op: generate, input: few, model: base, samples: 2, samples_as: rows}
  better: {op: revise, input: each, model: base, rounds: 2, rows: each}
  clean: {op: filter, input: better, drop: [duplicates]}
  both: {op: mix, inputs: {clean: 1, few: 1}}
  tuned: {op: sft, input: both, model: base}
  last: {op: generate, input: clean, model: tuned}
  sure: {op: evaluate, models: [base, tuned], inputs: {few: few}}
  scores: {op: evaluate, models: [base, tuned], inputs: {few: few}, comparisons: {help: {judge: base, sets: [few]}}}
  taught: {op: rl, input: few, model: base, algorithm: grpo, rewards: {kind: {grader: {model: base, question: Kind?}}}}
  late: {op: evaluate, models: [tuned], inputs: {clean: clean}, limit: 5}
"""


def planned(folder: Path, steps: str = STEPS, models: str = "{base: {source: tiny}}") -> dict[str, dict[str, Any]]:
    lines = [json.dumps({"prompt": f"Why {n}?", "response": "So."}) for n in range(10)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "spec.yaml").write_text(f"caiflow: 1\nconstitution: harmless\nmodels: {models}\nsteps:\n{steps}")
    plan = make_plan(load_spec(folder / "spec.yaml"), Store(folder / "home")).to_json()
    return {step["name"]: step for step in plan["steps"]}


def test_rows_and_calls_follow_from_local_sources(tmp_path: Path) -> None:
    found = {name: (step["rows"], step["calls"], step["at_most"]) for name, step in planned(tmp_path).items()}
    assert found == {
        "rows": (10, 0, False),
        "few": (4, 0, False),
        "pair": (10, 30, False),
        "choice": (10, 60, True),  # three pairs of answers, each in both orders
        "each": (4, 8, False),
        "better": (8, 32, True),
        "clean": (16, 0, True),
        "both": (8, 0, True),
        "tuned": (None, None, False),
        "last": (16, 16, True),
        "sure": (None, 8, False),
        "scores": (None, 16, True),  # eight answers, and four pairs in both orders
        "taught": (None, 32, True),  # eight replies to each prompt
        "late": (None, 5, True),
    }


def test_calls_that_the_ledger_may_hold_are_a_bound(tmp_path: Path) -> None:
    steps = "  rows: {op: load, source: rows.jsonl}\n  scores: {op: evaluate, models: [base], inputs: {rows: rows}}\n"
    told = planned(tmp_path, steps)["scores"]
    assert (told["calls"], told["at_most"]) == (10, False)
    store = Store(tmp_path / "home")
    model = Resolver(load_spec(tmp_path / "spec.yaml"), store).model("base")
    assert model is not None
    ledger = Ledger(store.ledger_dir, ledger_name("evaluate", model.identity))
    ledger.append(key("a call"), {"text": "So."})
    ledger.close()
    told = planned(tmp_path, steps)["scores"]
    assert (told["calls"], told["at_most"]) == (10, True)


def test_two_names_of_one_model_are_a_bound(tmp_path: Path) -> None:
    steps = "  rows: {op: load, source: rows.jsonl}\n  scores: {op: evaluate, models: [base, same], inputs: {rows: rows}}\n"
    told = planned(tmp_path, steps, models="{base: {source: tiny}, same: {source: tiny}}")["scores"]
    assert (told["calls"], told["at_most"]) == (20, True)


def test_sources_elsewhere_are_bounded_where_the_step_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for more, expected in (("sample: 7", Expected(7)), ("sample: 7, limit: 3", Expected(3)), ("", None)):
        fields = dict(part.split(": ") for part in more.split(", ")) if more else {}
        params = LoadParams.model_validate({"source": "org/set", **{name: int(value) for name, value in fields.items()}})
        assert Load(params, StepContext(base_dir=tmp_path)).expects({}) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 10), ({"limit": 3}, 3), ({"sample": 4}, 4), ({"sample": 40}, 10), ({"on_bad_row": "quarantine"}, 10),
        ({"split": {"test": 0.5, "part": "test"}}, None),
    ],
)  # fmt: skip
def test_the_rows_of_a_file_are_those_that_are_loaded(fields: dict[str, Any], expected: int | None, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"Why {n}?"}) + "\n" for n in range(10)))
    operator = Load(LoadParams.model_validate({"source": "rows.jsonl", **fields}), StepContext(base_dir=tmp_path))
    told = operator.expects({})
    with RowsWriter(tmp_path / "out") as out:
        operator.table(Job(out_dir=tmp_path / "out"), out)
    assert told == Expected(Rows(tmp_path / "out").num_rows, exact=True)
    assert expected in (None, told.rows)


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({"inputs": {"a": 1, "b": 2}}, 3 * 6),
        ({"inputs": {"a": 1, "b": {"rows": 5}}}, 10 + 5),
        ({"inputs": {"a": {"rows": "all"}, "b": {"rows": "all"}}}, 22),
        ({"inputs": {"a": 1, "b": 2}, "anchor": "a", "on_short": "take_all"}, 10 + 12),
        ({"inputs": {"a": 1, "b": 2}, "anchor": "a", "on_short": "oversample"}, 10 + 20),
    ],
)
def test_a_mixture_is_bounded_by_its_inputs(fields: dict[str, Any], rows: int) -> None:
    operator = Mix(MixParams.model_validate(fields), StepContext())
    assert operator.expects({"a": Expected(10, True), "b": Expected(12, True)}) == Expected(rows)
    assert operator.expects({"a": Expected(10, True)}) is None


def test_a_source_that_can_t_be_read_has_no_number(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": \n')
    operator = Load(LoadParams.model_validate({"source": "rows.jsonl"}), StepContext(base_dir=tmp_path))
    assert operator.expects({}) is None
