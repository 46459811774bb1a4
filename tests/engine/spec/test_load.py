"""From files to a spec: layers, overrides, the matrix, and the resolved spec that loads again to the same."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from caiflow.engine import registry
from caiflow.engine.errors import SpecError
from caiflow.engine.spec import graph
from caiflow.engine.spec.load import Spec, check_spec, load_spec
from support import small_operators

SPEC = """\
caiflow: 1
name: small
seed: 17
models:
  base: {source: tiny}
steps:
  data:  {op: read, source: data.jsonl}
  other: {op: read, source: data.jsonl}
  ask:   {op: ask, input: data, model: base, sampling: {temperature: 1}}
  good:  {op: sift, input: ask, drop: [unchanged, {length: {max: 2000}}]}
  both:  {op: blend, inputs: {good: 1, ask: 2.5}}
  tuned: {op: train, input: both, model: base, learning_rate: 2e-5}
  again: {op: ask, input: other, model: tuned}
  score: {op: score, models: [base, tuned], inputs: {held: other}}
profiles:
  gpu:
    models: {base: {source: org/big, dtype: bfloat16}}
    steps: {tuned: {epochs: 3}, ask: {sampling: null}}
"""


@pytest.fixture(autouse=True)
def _operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "data.jsonl").write_text('{"prompt": "hi"}\n')
    monkeypatch.chdir(tmp_path)
    with registry.extra(*small_operators.ALL):
        yield


def load(text: str, **options: object) -> Spec:
    """Write a spec beside the data and load it."""
    Path("spec.yaml").write_text(text, encoding="utf-8")
    return load_spec("spec.yaml", **options)  # type: ignore[arg-type]


def test_a_spec_is_frozen_and_typed() -> None:
    spec = load(SPEC)
    assert (spec.name, spec.seed, list(spec.steps)[:3]) == ("small", 17, ["data", "other", "ask"])
    tuned = spec.steps["tuned"]
    assert tuned.params.learning_rate == 2e-5  # type: ignore[attr-defined]
    assert [(ref.path, ref.name, ref.kind) for ref in tuned.references()] == [
        (("input",), "both", "rows"),
        (("model",), "base", "model"),
    ]
    assert [(ref.path, ref.name, ref.key) for ref in spec.steps["both"].references()] == [
        (("inputs", "good"), "good", True),
        (("inputs", "ask"), "ask", True),
    ]
    assert [ref.path for ref in spec.steps["score"].references()] == [("models", 0), ("models", 1), ("inputs", "held")]
    with pytest.raises(AttributeError):
        spec.seed = 3  # type: ignore[misc]


def test_the_graph_follows_the_references() -> None:
    spec = load(SPEC)
    assert [step.name for step in graph.topological(spec)].index("tuned") > list(spec.steps).index("both")
    assert graph.ancestors(spec, "again") == {"other", "tuned", "both", "good", "ask", "data"}


def test_a_spec_pickles_and_its_dump_loads_to_the_same() -> None:
    spec = load(SPEC, profile="gpu", sets=["seed=3"])
    assert pickle.loads(pickle.dumps(spec)) == spec
    again = load(spec.dump())
    assert (again.steps, again.models, again.seed, again.raw) == (spec.steps, spec.models, spec.seed, spec.raw)
    assert "profiles" not in spec.raw


def test_the_name_is_the_files_by_default() -> None:
    assert load(SPEC.replace("name: small\n", "")).name == "spec"


def test_a_profile_is_laid_over_and_a_null_takes_away() -> None:
    spec = load(SPEC, profile="gpu")
    assert (spec.models["base"].source, spec.models["base"].dtype) == ("org/big", "bfloat16")
    assert spec.steps["tuned"].params.epochs == 3  # type: ignore[attr-defined]
    assert "sampling" not in spec.raw["steps"]["ask"]


def test_several_profiles_lie_over_each_other_the_last_on_top() -> None:
    spec = load(f"{SPEC}  hot:\n    steps: {{tuned: {{epochs: 5}}}}\n", profile="gpu, hot")
    assert (spec.models["base"].dtype, spec.steps["tuned"].params.epochs) == ("bfloat16", 5)
    with pytest.raises(SpecError, match="unknown profile `gpus`"):
        load(SPEC, profile="gpu,gpus")


@pytest.mark.parametrize("name", ["llama3.1:8b", "accounts/x/models/y", "rl@with", "/models/llama", "../up", "C:\\m"])
def test_whatever_a_server_calls_its_model_is_a_name(name: str) -> None:
    served = SPEC.replace("source: tiny}", f"source: '{name}', base_url: 'http://127.0.0.1:9/v1'}}")
    assert load(served).models["base"].source == name


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(SpecError, match=r"spec.yaml:15:1: unknown profile `gpus`; did you mean `gpu`\?"):
        load(SPEC, profile="gpus")


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("steps.tuned.learning_rate=1e-4", ("tuned", "learning_rate"), 1e-4),
        ("steps.ask.sampling.temperature=0", ("ask", "sampling", "temperature"), 0),
        ("steps.ask.sampling={top_k: 5, stop: ['a=b']}", ("ask", "sampling"), {"top_k": 5, "stop": ["a=b"]}),
        ("steps.ask.description=text: with = signs", ("ask", "description"), "text: with = signs"),
        ("steps.ask.description='5'", ("ask", "description"), "5"),
        ("steps.score.models[1]=base", ("score", "models"), ["base", "base"]),
        ("steps.score.models.0=tuned", ("score", "models"), ["tuned", "tuned"]),
    ],
)
def test_overrides_are_typed_as_in_the_file(override: str, path: tuple[str, ...], value: object) -> None:
    raw = load(SPEC, sets=[override]).raw["steps"]
    for part in path:
        raw = raw[part]
    assert raw == value


def test_a_wrong_override_says_which_and_where_in_it() -> None:
    with pytest.raises(SpecError) as caught:
        load(SPEC, sets=["seed=1", "steps.tuned.epochs=many", "steps.tunde.epochs=1", "steps.score.models.7=base", "x"])
    assert [(p.file, p.line, p.col) for p in caught.value.problems] == [
        ("--set", 2, 20),
        ("--set", 3, 1),
        ("--set", 4, 1),
        ("--set", 5, 1),
    ]


def test_a_sample_limits_what_reads_a_source() -> None:
    spec = load(SPEC.replace("other: {op: read,", "other: {op: read, limit: 5,"), sample=20)
    assert (spec.steps["data"].params.limit, spec.steps["other"].params.limit) == (20, 5)  # type: ignore[attr-defined]
    assert "limit" not in spec.raw["steps"]["ask"]


def test_a_spec_extends_another_whose_paths_still_lead_to_its_files() -> None:
    Path("basis").mkdir()
    Path("basis/data.jsonl").write_text("{}\n")
    Path("basis/spec.yaml").write_text(SPEC)
    spec = load("caiflow: 1\nextends: basis/spec.yaml\nname: mine\nsteps:\n  score: null\n  ask: {sampling: {top_k: 3}}\n")
    assert spec.steps["data"].params.source == "basis/data.jsonl"  # type: ignore[attr-defined]
    assert "score" not in spec.steps
    assert spec.raw["steps"]["ask"]["sampling"] == {"temperature": 1, "top_k": 3}
    assert spec.name == "mine"


def test_constitutions_and_templates_of_an_extended_spec_are_found_beside_it_too() -> None:
    Path("basis").mkdir()
    Path("basis/data.jsonl").write_text("{}\n")
    Path("basis/rules.yaml").write_text("- {id: kind, rule: be kind}\n- {id: brief, rule: be brief}\n")
    Path("basis/chat.jinja").write_text("{{ messages }}")
    Path("basis/harmless").mkdir()  # a folder doesn't take the place of what is bundled under its name
    improve = "  a: {op: improve, input: ask, model: base, constitution: {source: rules.yaml, without: [brief]}}\n"
    improve += "  b: {op: improve, input: ask, model: base, constitution: [harmless, rules.yaml]}\n"
    basis = SPEC.replace("source: tiny", "source: tiny, chat_template: chat.jinja").replace("profiles:", improve + "profiles:")
    Path("basis/spec.yaml").write_text("constitution: harmless\n" + basis)
    spec = load("caiflow: 1\nextends: basis/spec.yaml\nname: mine\n")
    assert spec.models["base"].chat_template == "basis/chat.jinja"
    assert spec.raw["constitution"] == "harmless"
    assert spec.steps["a"].constitution == {"source": "basis/rules.yaml", "without": ["brief"]}
    assert spec.steps["b"].constitution == ["harmless", "basis/rules.yaml"]
    assert load(spec.dump()).steps == spec.steps


@pytest.mark.parametrize(("source", "told"), [("tiny", 1), ("./net", 1), ("org/one", 0), ("http://127.0.0.1:1/v1", 0)])
def test_a_revision_of_what_is_not_on_the_hub_is_remarked(source: str, told: int) -> None:
    Path("net").mkdir()
    Path("net/config.json").write_text("{}")
    remarks = load(SPEC.replace("source: tiny", f"source: '{source}', revision: v1")).remarks
    assert sum("`revision` has no effect" in remark.message for remark in remarks) == told


def test_what_stays_of_a_model_under_another_source_is_remarked() -> None:
    basis = SPEC.replace("base: {source: tiny}", "base: {source: org/one, revision: v1, chat_template: '{{ messages }}'}")
    Path("basis.yaml").write_text(basis)
    mine = "caiflow: 1\nextends: basis.yaml\nmodels: {base: {source: org/two, chat_template: '{{ messages }}'}}\n"

    def left(text: str, **options: object) -> list[tuple[int, str]]:
        remarks = load(text, **options).remarks
        return [(remark.line, remark.message) for remark in remarks if "still" in remark.message]

    assert left(mine) == [(3, "`revision` of `base` is still the one written for org/one")]
    assert left(mine, sets=["models.base.revision=null"]) == []
    back = left(mine, sets=["models.base.source=org/one"])
    assert back == [(1, "`chat_template` of `base` is still the one written for org/two")]
    assert left(mine.replace("two,", "two, revision: null,")) == left("caiflow: 1\nextends: basis.yaml\n") == []
    assert [told for _, told in left(basis, profile="gpu")] == [
        "`revision` of `base` is still the one written for org/one",
        "`chat_template` of `base` is still the one written for org/one",
    ]
    assert len(left(basis, sets=["models.base.source=org/two"])) == 2


def test_another_op_replaces_a_step_as_a_whole() -> None:
    Path("basis.yaml").write_text(SPEC)
    spec = load("caiflow: 1\nextends: basis.yaml\nsteps:\n  other: {op: sift, input: data}\n")
    assert spec.raw["steps"]["other"] == {"op": "sift", "input": "data"}


def test_a_path_on_the_command_line_counts_from_the_working_folder() -> None:
    Path("sub").mkdir()
    Path("sub/spec.yaml").write_text(SPEC)
    Path("sub/data.jsonl").write_text("{}\n")
    spec = load_spec("sub/spec.yaml", sets=["steps.data.source=data.jsonl"])
    assert spec.raw["steps"]["data"]["source"] == "../data.jsonl"
    assert spec.raw["steps"]["other"]["source"] == "data.jsonl"


def test_a_place_in_a_system_turn_that_nothing_fills_is_remarked() -> None:
    asked = "  said: {op: generate, input: data, model: base, system: 'TURN'}\nconstitution: harmless\nprofiles:"
    whole = SPEC.replace("profiles:", asked)
    told = load(whole.replace("TURN", "Keep to {{ principle }}. {{x}} {{ principles }} {{}}"))
    assert [(remark.message, remark.path) for remark in told.remarks] == [
        ("`{{ principle }}` is sent as it stands", "steps.said.system"),
        ("`{{x}}` is sent as it stands", "steps.said.system"),
    ]
    assert load(whole.replace("TURN", "Be kind, {{- principles -}}.")).remarks == ()


def test_a_matrix_copies_what_changes_and_shares_the_rest() -> None:
    spec = load(SPEC + "matrix:\n  rate: {slow: {tuned.learning_rate: 1e-6}, fast: {tuned.learning_rate: 1e-3}}\n")
    shared = ["data", "other", "ask", "good", "both"]
    copied = ["tuned@slow", "tuned@fast", "again@slow", "again@fast", "score@slow", "score@fast"]
    assert list(spec.steps) == shared + copied
    assert spec.steps["tuned@slow"].params.learning_rate == 1e-6  # type: ignore[attr-defined]
    assert spec.steps["score@fast"].params.models == ("base", "tuned@fast")  # type: ignore[attr-defined]
    assert (spec.steps["again@slow"].base, spec.steps["again@slow"].arm, spec.steps["ask"].arm) == ("again", "slow", "")
    assert load(spec.dump()).steps == spec.steps


def test_axes_multiply_only_where_both_reach() -> None:
    spec = load(SPEC + "matrix:\n  tuned.epochs: [1, 2]\n  again.sampling.top_k: [0, 5]\n")
    assert [name for name in spec.steps if "@" in name] == [
        "tuned@1", "tuned@2", "again@1+0", "again@1+5", "again@2+0", "again@2+5", "score@1", "score@2",
    ]  # fmt: skip
    assert spec.steps["again@2+5"].params.model == "tuned@2"  # type: ignore[attr-defined]


def test_a_star_gathers_every_arm() -> None:
    text = SPEC.replace("models: [base, tuned]", "models: [base, tuned@*]").replace(
        "{good: 1, ask: 2.5}", "{good@*: 1, ask: 2.5}"
    )
    spec = load(text + "matrix:\n  tuned.epochs: [1, 2]\n  good.drop: [[], [unchanged]]\n")
    assert spec.steps["score"].params.models == ("base", "tuned@1", "tuned@2")  # type: ignore[attr-defined]
    assert spec.raw["steps"]["both"]["inputs"] == {"good@1": 1, "good@2": 1, "ask": 2.5}
    assert load(text).steps["score"].params.models == ("base", "tuned")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "fields",
    [
        [f"ask.sampling.{name}" for name in ("top_k", "max_tokens", "temperature", "min_p")],
        [f"models.base.{name}" for name in ("max_calls", "num_cpus", "timeout_s", "replicas")],
    ],
)
def test_a_matrix_that_makes_too_many_copies_is_refused_before_it_makes_any(fields: list[str], tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + yaml.safe_dump({"matrix": {field: list(range(1, 200)) for field in fields}}))
    began = time.process_time()
    (problem,) = check_spec(path)
    assert time.process_time() - began < 5
    assert "more than 2,000" in problem.message
    assert problem.line > len(SPEC.splitlines())


def test_a_matrix_may_change_a_model() -> None:
    spec = load(SPEC + "matrix:\n  size: {small: {}, big: {models.base.source: org/big}}\n")
    assert (spec.models["base@small"].source, spec.models["base@big"].source) == ("tiny", "org/big")
    assert spec.steps["ask@big"].params.model == "base@big"  # type: ignore[attr-defined]
    assert [name for name in spec.steps if "@" not in name] == ["data", "other"]


def test_a_matrix_may_change_the_constitution() -> None:
    best = "  best: {op: improve, input: ask, model: base}\nprofiles:"
    text = SPEC.replace("input: ask, drop", "input: best, drop").replace("profiles:", best)
    less = "{source: harmless, only: [p01-violence]}"
    spec = load(f"{text}constitution: harmless\nmatrix:\n  rules: {{all: {{}}, less: {{constitution: {less}}}}}\n")
    assert spec.steps["best@all"].constitution is None
    assert spec.steps["best@less"].constitution == {"source": "harmless", "only": ["p01-violence"]}
    assert spec.steps["good@less"].constitution == spec.steps["best@less"].constitution
    assert "ask" in spec.steps


def test_any_value_anywhere_in_a_spec_gives_problems_and_no_traceback() -> None:
    whole = yaml.safe_load(SPEC + "constitution: harmless\nmatrix: {rate: {slow: {tuned.epochs: 1}}, tuned.workers: [1, 2]}\n")
    for path in _paths(whole):
        for value in ("text", 1.5, [1, {"a": None}], None):
            changed = copy.deepcopy(whole)
            inner = changed
            for part in path[:-1]:
                inner = inner[part]
            inner[path[-1]] = value
            Path("odd.yaml").write_text(yaml.safe_dump(changed))
            assert all(problem.line > 0 and problem.message for problem in check_spec("odd.yaml")), (path, value)


def _paths(value: Any, start: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value but the whole."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*start, key)
        yield from _paths(inner, (*start, key))


def test_loading_a_spec_imports_nothing_heavy() -> None:
    Path("plain.yaml").write_text(
        "caiflow: 1\nmodels: {m: {source: tiny}}\nconstitution: harmless\nsteps:\n  d: {op: load, source: data.jsonl}\n"
        "  g: {op: generate, input: d, model: m}\n  c: {op: critique, input: g, model: m}\n"
    )
    code = (
        "import sys; from caiflow.engine.spec.load import load_spec; load_spec('plain.yaml')\n"
        "heavy = {'numpy', 'pyarrow', 'polars', 'torch', 'ray', 'transformers', 'datasets', 'jsonschema'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
