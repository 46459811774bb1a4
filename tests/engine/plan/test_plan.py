"""What the plan says and what the run then does are the same: edited principles, grown data, changed settings."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.commands.tables import plan_notes
from caiflow.engine.errors import SpecError
from caiflow.engine.identity import digest
from caiflow.engine.plan.changes import changes, describe, why_raised
from caiflow.engine.plan.components import Resolver
from caiflow.engine.plan.plan import make_plan, shortages
from caiflow.engine.spec.graph import chosen
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.checkpoints import CHECKPOINTS, mark_complete
from support.commands import command_here
from support.kills import ledger_records

SPEC = """
caiflow: 1
name: edited
seed: 5
constitution: rules.yaml
models:
  base: {source: tiny, engine: transformers}
steps:
  prompts:  {op: load, source: prompts.jsonl}
  response: {op: generate, input: prompts, model: base, sampling: {max_tokens: 16}}
  critique: {op: critique, input: response, model: base, sampling: {max_tokens: 16}}
  revision: {op: revise, input: critique, model: base, sampling: {max_tokens: 16}}
"""
ROWS = 80


class Project:
    """A folder with a spec, driven by the command; its runs share a Ray."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.home = folder / "home"
        self.rules = folder / "rules.yaml"
        self.rules.write_text((Path(str(files("caiflow.constitutions"))) / "harmless.yaml").read_text(), encoding="utf-8")
        (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
        self.write_prompts(ROWS)

    def write_prompts(self, rows: int) -> None:
        lines = [json.dumps({"prompt": f"How do I paint shed number {i}?"}) for i in range(rows)]
        (self.folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def command(self, *arguments: str) -> str:
        done = command_here(self.folder, *arguments, CAIFLOW_HOME=str(self.home))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def plan(self, spec: str = "spec.yaml", *arguments: str) -> dict[str, Any]:
        steps: list[dict[str, Any]] = json.loads(self.command("plan", spec, "--json", *arguments))["steps"]
        return {step["name"]: step for step in steps}

    def run(self, name: str) -> dict[str, Any]:
        self.command("run", "spec.yaml", "--out", name, "--address", self.address)
        steps: dict[str, Any] = json.loads((self.folder / name / "run.json").read_text())["steps"]
        return steps


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Project:
    """A project whose first run is done."""
    made = Project(tmp_path_factory.mktemp("plan"), ray_address)
    made.run("first")
    return made


@pytest.mark.slow
def test_everything_is_cached_after_a_run(project: Project) -> None:
    assert {step["state"] for step in project.plan().values()} == {"cached"}


@pytest.mark.slow
def test_what_comes_after_an_untrained_model_is_counted_all_the_same(project: Project) -> None:
    more = """
  sl:         {op: sft, input: revision, model: base}
  pair:       {op: generate, input: prompts, model: sl, samples: 2}
  preference: {op: judge, input: pair, model: base}
"""
    (project.folder / "more.yaml").write_text(SPEC.rstrip() + more, encoding="utf-8")
    steps = json.loads(project.command("plan", "more.yaml", "--json"))["steps"]
    found = {step["name"]: (step["reason"], step["to_run"], step["calls"]) for step in steps}
    assert found["pair"] == ("after its model", ROWS, 2 * ROWS)
    assert found["preference"] == ("after pair", ROWS, 2 * ROWS)


@pytest.mark.slow
def test_an_edited_principle_reruns_only_the_rows_that_drew_it(project: Project) -> None:
    from caiflow.engine.rows.folder import Rows

    drew = [row["uid"] for row in Rows(project.folder / "first" / "steps" / "critique").pylist() if "p07" in row["principle"]]
    before = project.rules.read_text()
    start = before.index("critique: >-", before.index("id: p07"))
    project.rules.write_text(before[:start] + "critique: >-\n      Say more.\n" + before[start + len("critique: >-") :])
    plan = project.plan()
    assert plan["response"]["state"] == "cached"
    assert (plan["critique"]["state"], plan["critique"]["to_run"], plan["critique"]["cached"]) == (
        "partial",
        len(drew),
        ROWS - len(drew),
    )
    assert plan["critique"]["calls"] == plan["revision"]["calls"] == len(drew)
    assert "principle p07" in plan["critique"]["reason"]
    assert "edited" in plan["critique"]["reason"]
    assert "principles.p07" in project.command("why", "spec.yaml", "critique", "--json")
    run = project.run("edited")
    (change,) = json.loads(project.command("diff", "first", "edited", "--json"))["prompts"]
    assert (change["path"].partition("-")[0], change["path"].rpartition(".")[2]) == ("principles.p07", "critique")
    assert change["new"].startswith("Say more.\n")
    assert 0 < len(drew) < ROWS / 6
    assert (run["critique"]["cached"], run["critique"]["rows_out"]) == (ROWS - len(drew), ROWS)
    project.rules.write_text(before)
    again = project.plan()["critique"]
    assert (again["state"], again["reason"]) == ("cached", "done by an earlier run than the last, which had another")


@pytest.mark.slow
@pytest.mark.soak
def test_ten_percent_new_rows_are_all_that_runs(project: Project) -> None:
    project.write_prompts(ROWS + ROWS // 10)
    run = project.run("grown")
    for step in ("response", "critique", "revision"):
        assert (run[step]["cached"], run[step]["rows_out"]) == (ROWS, ROWS + ROWS // 10)
    records = list(ledger_records(project.home))
    assert len(records) == len(set(records))


def test_a_training_cut_off_goes_on_from_its_last_checkpoint(tmp_path: Path, ray_address: str) -> None:
    project = Project(tmp_path, ray_address)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Paint?", "response": "Use a brush."}\n')
    (tmp_path / "training.yaml").write_text(
        "caiflow: 1\nmodels: {base: {source: tiny}}\nsteps:\n  pairs: {op: load, source: pairs.jsonl}\n"
        "  again: {op: generate, input: pairs, model: base}\n  tuned: {op: sft, input: pairs, model: base}\n"
    )
    assert list(project.plan("training.yaml", "--until", "tuned")) == ["pairs", "tuned"]
    project.command("run", "training.yaml", "--until", "pairs", "--out", "loaded", "--address", ray_address)
    tuned = project.plan("training.yaml")["tuned"]
    assert (tuned["state"], tuned["reason"]) == ("run", "never run")
    folder = Store(project.home).work_dir(tuned["digest"]) / CHECKPOINTS
    for steps in (7, 12):
        (folder / f"checkpoint-{steps}").mkdir(parents=True)
    mark_complete(folder / "checkpoint-7")
    tuned = project.plan("training.yaml")["tuned"]
    assert (tuned["state"], tuned["reason"]) == ("partial", "cut off before; goes on after 7 optimizer steps")
    assert (folder / "checkpoint-12").exists(), "to plan changes nothing"


def test_a_step_with_arms_stands_for_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "arms.yaml").write_text(
        "caiflow: 1\nmodels: {base: {source: tiny}}\nsteps:\n  red: {op: load, source: 'tiny:helpful_test.jsonl'}\n"
        "  ask: {op: generate, input: red, model: base}\n  rest: {op: filter, input: ask, drop: [duplicates]}\n"
        "matrix: {ask.samples: [1, 2]}\n"
    )
    spec = load_spec(tmp_path / "arms.yaml")
    assert chosen(spec, "ask") == {"red", "ask@1", "ask@2"}
    assert chosen(spec, "ask@2") == {"red", "ask@2"}
    with pytest.raises(SpecError, match="did you mean `red`"):
        chosen(spec, "rde")


def test_changes_are_named_in_words() -> None:
    old = {"params.learning_rate": 2e-5, "principles.p01": "a", "inputs.input": "x", "seed": 1}
    new = {"params.learning_rate": 1e-5, "principles.p01": "b", "inputs.input": "y", "seed": 1}
    assert describe(("uses.few_shot.9c0147ce", ["How?"], None)) == "few-shot examples edited"
    assert [describe(change) for change in changes(old, new)] == [
        "learning_rate 2e-05 -> 1e-05",
        "principle p01 edited",
        "input changed",
    ]


def test_a_version_is_told_by_number_and_its_rule_apart() -> None:
    assert describe(("operator", "load@2", "load@3")) == "operator load@2 -> load@3"
    assert why_raised("load@2", "load@3") == "rows are named by what is in them, no longer by their file's name too"
    assert why_raised("load@3", "load@4") == why_raised("load@2", "other@3") == why_raised("", "load@3") == ""


def test_a_changed_rule_is_told_once_with_the_answers_that_it_costs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": f"{name} {n}?"}) + "\n" for n in range(3)))
    steps = "".join(f"  {name}: {{op: load, source: {name}.jsonl}}\n" for name in ("one", "two"))
    steps += "  answers: {op: generate, input: one, model: base}\n  more: {op: generate, input: answers, model: base}\n"
    steps += "  clean: {op: filter, input: more, drop: [duplicates]}\n"
    (tmp_path / "spec.yaml").write_text(f"caiflow: 1\nname: rule\nmodels: {{base: {{source: tiny}}}}\nsteps:\n{steps}")
    spec, store = load_spec(tmp_path / "spec.yaml"), Store(tmp_path / "home")
    resolver = Resolver(spec, store)
    former = {name: dict(resolver.row_components(spec.steps[name]) or {}) for name in spec.steps}
    former |= {name: {**former[name], "operator": "load@2"} for name in ("one", "two")}
    for name in ("answers", "more", "clean"):
        staged = store.stage(name)
        (staged / "rows.txt").write_text(name)
        store.seal(digest(former[name]), staged, {"kind": "rows", "rows_out": 3})
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "components.json").write_text(json.dumps(former))
    store.record_run("rule", run_dir)
    plan = make_plan(spec, store)
    why = "rows are named by what is in them, no longer by their file's name too"
    assert plan.rules == (f"one, two: {why}; 6 answers of the last run are asked again",)


def test_a_model_that_isn_t_here_yet_isn_t_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?", "response": "So."}\n')
    models = f"{{base: {{source: tiny}}, far: {{source: org/far, revision: {'a' * 40}}}}}"
    text = f"caiflow: 1\nmodels: {models}\nsteps:\n  rows: {{op: load, source: rows.jsonl}}\n"
    (tmp_path / "spec.yaml").write_text(text + "  t: {op: sft, input: rows, model: far, lora: {targets: [nope]}}\n")
    plan = make_plan(load_spec(tmp_path / "spec.yaml"), Store(tmp_path / "home"))
    assert plan.unchecked == ("far",)
    assert any("not checked: far" in str(note) for note in plan_notes(plan.to_json()))


def test_a_change_that_shows_in_what_a_step_uses_is_named_once() -> None:
    old = {"seed": 1, "params.sampling.temperature": 0.7, "uses.seed": 1, "uses.samplings.0.temperature": 0.7, "uses.text": "a"}
    new = {"seed": 2, "params.sampling.temperature": 0.5, "uses.seed": 2, "uses.samplings.0.temperature": 0.5, "uses.text": "b"}
    assert [describe(change) for change in changes(old, new)] == [
        "seed 1 -> 2",
        "sampling.temperature 0.7 -> 0.5",
        "text a -> b",
    ]
    kept = {**old, "uses.samplings.0.temperature": 0.9}
    assert [describe(change) for change in changes(old, kept)] == ["samplings.0.temperature 0.7 -> 0.9"]


def identities(folder: Path, edit: dict[str, str] | None = None, home: Path | None = None) -> list[Any]:
    """Return what decides each step's output, in order, for the spec with some of its text replaced."""
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.spec.load import load_spec
    from caiflow.engine.store.artifacts import Store

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n', encoding="utf-8")
    text = SPEC.replace("rules.yaml", "harmless")
    for old, new in (edit or {}).items():
        assert old in text
        text = text.replace(old, new)
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    resolver = Resolver(load_spec(folder / "spec.yaml"), Store(home or folder / "home"))
    return [resolver.row_components(step) for step in resolver.order]


SAME = {
    "a step is renamed": {"critique:": "criticism:", "input: critique": "input: criticism"},
    "a model is renamed": {"  base:": "  small:", "model: base": "model: small"},
    "more rows are in flight": {"{op: generate,": "{op: generate, concurrency: 7,"},
    "more cores": {"{op: generate,": "{op: generate, resources: {num_cpus: 3},"},
    "more tries": {"{op: critique,": "{op: critique, retries: 9, max_failed: 4,"},
    "a remark": {"{op: revise,": '{op: revise, description: "the last step",'},
    "YAML in another style": {"sampling: {max_tokens: 16}}\n  critique": "sampling: {\n    max_tokens: 16.0}}\n  critique"},
    "replicas": {"engine: transformers}": "engine: transformers, replicas: 2}"},
    "labels": {"engine: transformers}": "engine: transformers, node_labels: {card: large}}"},
}
OTHER = {
    "more tokens": {"sampling: {max_tokens: 16}}\n  critique": "sampling: {max_tokens: 17}}\n  critique"},
    "a temperature": {"sampling: {max_tokens: 16}}\n  critique": "sampling: {max_tokens: 16, temperature: 0.1}}\n  critique"},
    "a stop sequence": {"sampling: {max_tokens: 16}}\n  critique": 'sampling: {max_tokens: 16, stop: ["x"]}}\n  critique'},
    "the seed": {"seed: 5": "seed: 6"},
    "few-shots": {"{op: critique,": "{op: critique, few_shot: 2,"},
    "rounds": {"{op: revise,": "{op: revise, rounds: 2,"},
    "the dtype": {"engine: transformers}": "engine: transformers, dtype: bfloat16}"},
    "the chat template": {"engine: transformers}": 'engine: transformers, chat_template: "{{ messages[0].content }}"}'},
    "a limit on the rows": {"source: prompts.jsonl": "source: prompts.jsonl, limit: 1"},
}


@pytest.mark.parametrize("edit", SAME.values(), ids=SAME)
def test_what_only_affects_speed_or_names_keeps_the_identity(tmp_path: Path, edit: dict[str, str]) -> None:
    assert identities(tmp_path / "a" / "there", edit) == identities(tmp_path / "b")


@pytest.mark.parametrize("edit", OTHER.values(), ids=OTHER)
def test_what_changes_the_output_changes_the_identity(tmp_path: Path, edit: dict[str, str]) -> None:
    assert identities(tmp_path / "a", edit) != identities(tmp_path / "b")


def test_a_step_without_a_stable_identity_is_refused_with_the_place(tmp_path: Path) -> None:
    from caiflow.engine import registry
    from caiflow.engine.errors import StepError
    from caiflow.engine.plan.plan import make_plan
    from caiflow.engine.spec.load import load_spec
    from caiflow.engine.store.artifacts import Store
    from support.small_operators import Read

    class Unstable(Read):
        name = "unstable"

        def identity(self) -> dict[str, Any]:
            return {"folders": [tmp_path]}

    (tmp_path / "prompts.jsonl").write_text("{}\n")
    (tmp_path / "spec.yaml").write_text("caiflow: 1\nsteps:\n  first: {op: unstable, source: prompts.jsonl}\n")
    with registry.extra(Unstable):
        spec = load_spec(tmp_path / "spec.yaml")
        with pytest.raises(StepError, match=r"^first: identity: uses\.folders\.0: PosixPath has no form"):
            make_plan(spec, Store(tmp_path / "home"))


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="a GPU is here")
def test_a_plan_tells_that_exact_answers_need_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "How?"}\n')
    (tmp_path / "rules.yaml").write_text("- Be kind.\n")
    (tmp_path / "spec.yaml").write_text(SPEC.replace("engine: transformers", "engine: vllm, exact: true"))
    (told,) = shortages(load_spec(tmp_path / "spec.yaml"))
    assert told == "models.base: asks for exact answers, which need an NVIDIA GPU; this machine has none"


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="a GPU is here")
def test_a_plan_counts_what_all_replicas_of_a_model_ask_for(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "How?"}\n')
    (tmp_path / "rules.yaml").write_text("- Be kind.\n")
    more = "engine: transformers, num_gpus: 16, num_cpus: 9000, replicas: 4"
    (tmp_path / "spec.yaml").write_text(SPEC.replace("engine: transformers", more))
    told = shortages(load_spec(tmp_path / "spec.yaml"))
    assert told[0] == "models.base: asks for 16 GPUs x 4 replicas, this machine has 0"
    assert told[1].startswith("models.base: asks for 9000 CPUs x 4 replicas, this machine has ")
