"""Every bundled recipe is valid and planned in every profile, names its source, and runs end to end on the bundled model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caiflow import open_run
from caiflow.engine.llm.model_files import PACKAGED, packaged_file
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.spec.grammar import Spec
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.journal import read_run
from caiflow.operators.formats.templates import rendered
from caiflow.operators.inducing.voting import NOTE
from support.commands import run_here
from support.kills import ledger_records, start
from support.quickstart_figures import each_stage_earns_its_place

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "specs").glob("*.yaml"))
COMMIT = "c" * 40
SAMPLE = 16
PUBLISHED = {
    "paper",
    "autoalign_style",
    "nemo_style",
    "pseudocode",
    "small_lora",
    "principle_ablation",
    "iterated",
    "character",
}
SHORT = {"deliberative_alignment", "red_team", "rlaif_direct", "constitutional_classifier", "character", "from_preferences"}


def profiles(path: Path) -> list[str]:
    import yaml

    return list(yaml.safe_load(path.read_text()).get("profiles", {}))


@pytest.mark.parametrize("path", [*RECIPES, ROOT / "examples" / "tiny" / "spec.yaml"], ids=lambda path: path.stem)
def test_it_is_valid_and_can_be_planned(path: Path, tmp_path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem or path.parent.name == spec.name
    assert spec.description
    needs_packages(spec)
    assert {step.name for step in make_plan(spec, Store(tmp_path)).steps} == set(spec.steps)


def needs_packages(spec: Spec) -> None:
    """Skip where a package that brings a model isn't installed."""
    for entry in spec.models.values():
        if entry.source in PACKAGED and packaged_file(entry.source) is None:
            pytest.skip(f"needs the model {entry.source}: {PACKAGED[entry.source].command}")


def hub_ids(path: Path, profile: str) -> Iterator[tuple[str, str]]:
    """Yield (kind of repository, id) of everything that a profile takes from the hub."""
    spec = load_spec(path, profile=profile)
    for entry in spec.models.values():
        yield from (("models", name) for name in (entry.source, entry.tokenizer) if name and "/" in name and not entry.base_url)
    for step in spec.steps.values():
        source = getattr(step.params, "source", None)
        if isinstance(source, str) and "/" in source:
            yield "datasets", source


def lay_out_hub(cache: Path, kind: str, repository: str) -> None:
    """Lay out a repository as the hub's client does: `main` refers to a commit whose snapshot is there."""
    folder = cache / f"{kind}--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
    if kind == "models":
        (folder / "snapshots" / COMMIT / "config.json").write_text('{"model_type": "mistral"}')


@pytest.mark.parametrize(
    ("path", "profile"),
    [(path, profile) for path in RECIPES for profile in profiles(path)],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_each_profile_is_planned_from_the_hub_cache_alone(path: Path, profile: str, tmp_path: Path) -> None:
    needs_packages(load_spec(path, profile=profile))
    found = set(hub_ids(path, profile))
    for kind, repository in found:
        lay_out_hub(tmp_path / "hf" / "hub", kind, repository)
    plan = offline_plan(path, profile, tmp_path)
    assert {step["name"] for step in plan["steps"]} == set(load_spec(path, profile=profile).steps)
    assert not [step for step in plan["steps"] if step["state"] == "cached"]


def test_what_is_not_in_the_hub_cache_is_named_and_the_plan_goes_on(tmp_path: Path) -> None:
    plan = offline_plan(ROOT / "specs" / "iterated.yaml", "full", tmp_path)
    assert any("Anthropic/hh-rlhf" in told for told in plan["unreached"])
    assert {step["state"] for step in plan["steps"]} == {"run"}


def offline_plan(path: Path, profile: str, home: Path) -> dict[str, Any]:
    done = plan_command(path, profile, home)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def plan_command(path: Path, profile: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_CACHE"}
    env |= {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "CAIFLOW_HOME": str(home / "home")}
    command = [sys.executable, "-m", "caiflow.engine.cli", "plan", str(path), "--profile", profile, "--json"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_runs_on_the_bundled_model_and_data(path: Path) -> None:
    spec = load_spec(path)
    real = path.stem == "real"
    assert {entry.source for entry in spec.models.values()} == {"smollm2" if real else "tiny"}
    sources = [step.params.model_dump()["source"] for step in spec.steps.values() if step.op == "load"]
    assert all(source.startswith("plain:" if real else "tiny:") for source in sources)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_method_names_its_source_and_what_differs(name: str) -> None:
    text = (ROOT / "specs" / f"{name}.yaml").read_text()
    header = text[: text.index("\ncaiflow: 1")]
    assert "# Reproduces:" in header
    assert "# Differs:" in header
    assert "full" in profiles(ROOT / "specs" / f"{name}.yaml")


@pytest.mark.parametrize("name", sorted(SHORT))
def test_a_method_of_today_takes_forty_lines_and_says_what_differs(name: str) -> None:
    text = (ROOT / "specs" / f"{name}.yaml").read_text().partition("\nprofiles:")[0]
    assert len(text.splitlines()) <= 40
    assert re.search(r"# Reproduces: .*?\(.*?arXiv \d{4}\.\d{5}.*?# Differs: ", text, re.DOTALL)


def test_the_principle_is_in_view_when_examples_are_written_and_out_of_view_when_they_are_learnt() -> None:
    spec = load_spec(ROOT / "specs" / "deliberative_alignment.yaml")
    learnt = spec.steps["thought"].params.model_dump()["join"]["text"]
    assert tuple(learnt) == ("critique", "revision"), "what the model wrote, not what it was asked"
    assert spec.operators["critique"].uses_constitution
    assert not spec.operators["aligned"].uses_constitution
    assert spec.steps["sft_data"].params.model_dump()["inputs"]["thought"]["answer"] == "text"


def test_the_classifier_is_asked_as_it_learnt_and_the_test_set_is_kept_from_it() -> None:
    spec = load_spec(ROOT / "specs" / "constitutional_classifier.yaml")
    learnt = spec.steps["lesson"].params.model_dump()["set"]["prompt"]
    graders = spec.steps["scores"].params.model_dump()["graders"]
    talk = [{"role": "user", "content": "How?"}]
    lesson = rendered(learnt, {"prompt": talk, "response": "So."}, "lesson")
    asked = [rendered(how["question"], {"request": "How?", "response": "So."}, "question") for how in graders.values()]
    assert asked == [lesson] * 2
    assert {how["model"] for how in graders.values()} == {"classifier", "base"}
    tests = {"harmful_test", "helpful_test", "frightening_test"}
    assert {*spec.steps["labelled"].params.model_dump()["held_out"]} == tests
    assert not tests & {*spec.steps["labelled"].params.model_dump()["inputs"]}


def test_a_trial_mixes_what_its_few_rows_give() -> None:
    path = ROOT / "specs" / "paper.yaml"
    assert load_spec(path).steps["prompts"].params.model_dump()["on_short"] == "fail"
    assert load_spec(path, sample=SAMPLE).steps["prompts"].params.model_dump()["on_short"] == "take_all"
    given = load_spec(path, sample=SAMPLE, sets=["steps.prompts.on_short=oversample"])
    assert given.steps["prompts"].params.model_dump()["on_short"] == "oversample"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that all recipes share, so that equal steps are made once."""
    return tmp_path_factory.mktemp("recipes") / "home"


def shortened(path: Path, profile: str | None) -> list[str]:
    """Return the settings that keep a trial short: two steps of RL, some arms of a long matrix, one answer per prompt."""
    spec = load_spec(path, profile=profile)
    sets = [f"steps.{step.name}.max_steps=2" for step in spec.steps.values() if step.op == "rl"]
    if path.stem == "ablations":
        sets += ["steps.scores.samples=1", "matrix.arm.no_critique=null", "matrix.arm.hard_labels=null"]
    if path.stem == "principle_ablation":
        arms = [step.arm for step in spec.steps.values() if step.base == "sl_cai"]
        sets += [f"matrix.without.{arm}=null" for arm in arms if arm not in ("none", "theft", "privacy")]
    return [option for text in sets for option in ("--set", text)]


OTHERWISE = {"from_preferences", "principle_ablation", "quickstart", "red_team"}
"""Those that tests of their own run."""
TRIALS = [
    *((path, None) for path in RECIPES if path.stem not in OTHERWISE),
    (ROOT / "specs" / "paper.yaml", "thinking"),
]


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(("path", "profile"), TRIALS, ids=lambda value: value.stem if isinstance(value, Path) else value)
def test_it_runs_end_to_end_on_a_sample(path: Path, profile: str | None, home: Path, tmp_path: Path) -> None:
    needs_packages(load_spec(path))
    options = ["--sample", str(SAMPLE), *shortened(path, profile), *(["--profile", profile] if profile else [])]
    code = start(path, tmp_path / "run", home, *options).wait(timeout=900)
    assert code == 0, (tmp_path / "run" / "console.txt").read_text()
    check_trial(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.soak
def test_prompts_that_a_model_writes_are_new_and_do_harm(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start(ROOT / "specs" / "red_team.yaml", out, home, "--sample", str(SAMPLE)).wait(timeout=250) == 0
    check_trial(out)
    run = open_run(out)

    def prompts(step: str) -> list[str]:
        return [row["prompt"][-1]["content"].casefold().strip() for row in run[step].table]

    kept = prompts("red_team")
    assert len(run["written"].table) == 3 * SAMPLE
    assert len(kept) == len(set(kept)) > 0
    assert not {*kept} & {*prompts("examples"), *prompts("harmful_test")}
    assert all(row["grade"] >= 2 for row in run["red_team"].table)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1000)
def test_leaving_a_principle_out_lowers_its_own_line_most(home: Path, tmp_path: Path) -> None:
    path, out = ROOT / "specs" / "principle_ablation.yaml", tmp_path / "run"
    assert start(path, out, home, *shortened(path, None)).wait(timeout=900) == 0, (out / "console.txt").read_text()
    check_trial(out)
    found = json.loads((out / "steps" / "scores" / "metrics.json").read_text())["adherence"]
    whole = found["sl_cai@none"]
    for arm in ("theft", "privacy"):
        lost = {name: whole[name]["rate"] - rate["rate"] for name, rate in found[f"sl_cai@{arm}"].items()}
        assert max(lost, key=lambda name: lost[name]) == arm, lost
        assert lost[arm] > 0.15
    assert found["sl_cai@privacy"]["privacy"]["high"] < whole["privacy"]["low"]
    assert whole["whole"]["change"]["low"] > 0.5


def test_wishes_are_learnt_in_the_words_in_which_statements_are_put_to_the_vote_and_replies_have_none_of_these() -> None:
    spec = load_spec(ROOT / "specs" / "from_preferences.yaml")
    wish = spec.steps["wishes"].params.model_dump()["set"]["prompt"]
    found = spec.steps["found_sociable"].params.model_dump()
    told = ("gather it, then go on, and finally tidy up", "read the page, then check it twice, and finally show it to a friend")
    taught = {
        rendered(wish, {"prompt": [{"role": "user", "content": "How?"}], "response": reply, "sample": place}, "wish"): reply
        for reply in told
        for place in range(3)
    }
    statements = [text for both in found["opposites"].items() for text in both]
    assert taught.keys() == {NOTE.format(asked="How?", statement=text) for text in statements}
    words = {word for text in (*statements, *found["unrelated"]) for word in text.split()} - {"a", "the", "in", "it"}
    assert not words & {word for reply in told for word in reply.split()}, "what is merely copied isn't read"
    assert {*spec.steps["lessons"].params.model_dump()["held_out"]} == {*spec.steps["shown"].params.model_dump()["inputs"]}


FURTHER = """\
caiflow: 1
extends: from_preferences
name: further
steps:
  by_chance: {op: map, input: sociable, set: {chosen: "{{ [first, second][(first ~ second) | length % 2] }}",
    rejected: "{{ [second, first][(first ~ second) | length % 2] }}"}}
  nothing:   &asked {op: induce, input: by_chance, model: reader, vote: likelihood, proposals: 0, held_out: 0.25,
    opposites: {is sociable: is solitary, is careful: is hasty, is studious: is bold}, unrelated: UNRELATED}
  untaught:  {<<: *asked, input: sociable, model: base}
  untaught_careful: {<<: *asked, input: careful, model: base}
"""


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1000)
def test_planted_preferences_are_found_by_a_model_taught_to_read_and_by_no_other(home: Path, tmp_path: Path) -> None:
    """The untaught one, asked the same, and the taught one where preferences are drawn, find nothing; a rerun asks nothing."""
    asked = load_spec(ROOT / "specs" / "from_preferences.yaml").steps["found_sociable"].params.model_dump()
    (tmp_path / "spec.yaml").write_text(FURTHER.replace("UNRELATED", json.dumps(asked["unrelated"])))
    paid = []
    for folder in ("first", "again"):
        assert start(tmp_path / "spec.yaml", tmp_path / folder, home).wait(timeout=800) == 1
        steps = read_run(tmp_path / folder)["steps"]
        failed = {name: step["error"] for name, step in steps.items() if step["status"] == "failed"}
        assert failed.keys() == {"nothing", "untaught", "untaught_careful"}
        assert all("ahead of all unrelated ones" in failed[name] for name in ("untaught", "untaught_careful"))
        paid.append(sorted(ledger_records(home)))
    assert paid[0] == paid[1]
    for step, kept in (("sociable", "is sociable"), ("exchanged", "is solitary"), ("careful", "is careful")):
        found = json.loads((tmp_path / "first" / "steps" / f"found_{step}" / "metrics.json").read_text())
        assert [one["statement"] for one in found["principles"].values()] == [kept]
        assert 0.5 < found["reconstruction"]["low"] < found["reconstruction"]["high"]
        assert found["unmoved"]["high"] < 0.25


@pytest.mark.slow
@pytest.mark.soak
def test_the_quickstart_runs_on_a_sample_as_where_vllm_is_not_installed(tmp_path: Path, ray_address: str) -> None:
    options = ["--sample", str(SAMPLE // 2), "--set", "models.base.engine=transformers"]
    run_here(ray_address, ROOT / "specs" / "quickstart.yaml", tmp_path / "run", tmp_path / "home", *options)
    check_trial(tmp_path / "run")


def check_trial(out: Path) -> None:
    run = read_run(out)
    assert {step["status"] for step in run["steps"].values()} <= {"done", "cached"}
    measured = json.loads((out / "steps" / "scores" / "metrics.json").read_text())
    rates = [check for sets in measured["models"].values() for checks in sets.values() for check in checks.values()]
    assert rates
    assert all(rate["n"] > 0 and 0 <= rate["low"] <= rate["rate"] <= rate["high"] <= 1 for rate in rates)


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.timeout(1000)  # beyond what the run itself is given
def test_each_stage_of_the_quickstart_earns_its_place_with_another_seed(home: Path, tmp_path: Path) -> None:
    """With the spec's own seed the wheel's quickstart shows it."""
    out = tmp_path / "run"
    assert start(ROOT / "specs" / "quickstart.yaml", out, home, "--set", "seed=11").wait(timeout=900) == 0
    each_stage_earns_its_place(out, 0.1)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_the_quickstart_gives_the_same_figures_on_vllm(home: Path, tmp_path: Path) -> None:
    found = []
    for engine in ("transformers", "vllm"):
        out = tmp_path / engine
        options = ["--sample", str(SAMPLE), *shortened(ROOT / "specs" / "quickstart.yaml", None)]
        driver = start(ROOT / "specs" / "quickstart.yaml", out, home, *options, "--set", f"models.base.engine={engine}")
        assert driver.wait(timeout=550) == 0, (out / "console.txt").read_text()
        found.append(json.loads((out / "steps" / "scores" / "metrics.json").read_text())["models"])
    for model, sets in found[0].items():
        for name, checks in sets.items():
            for check, rate in checks.items():
                assert abs(rate["rate"] - found[1][model][name][check]["rate"]) <= 0.1, f"{model}.{name}.{check}"
