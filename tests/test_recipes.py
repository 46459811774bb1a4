"""Every bundled recipe is valid in every profile, runs on the bundled model if not told otherwise, and names its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.plan import make_plan
from caiflow.engine.spec import load_spec
from caiflow.engine.store import Store

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "specs").glob("*.yaml"))
PUBLISHED = {"paper", "autoalign_style", "nemo_style", "pseudocode", "small_lora", "principle_ablation", "iterated"}


def profiles(path: Path) -> list[str]:
    import yaml

    return list(yaml.safe_load(path.read_text()).get("profiles", {}))


@pytest.mark.parametrize("path", [*RECIPES, ROOT / "examples" / "tiny" / "spec.yaml"], ids=lambda path: path.stem)
def test_it_is_valid_and_can_be_planned(path: Path, tmp_path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem or path.parent.name == spec.name
    assert spec.description
    assert [step.name for step in make_plan(spec, Store(tmp_path)).steps] == list(spec.steps)


@pytest.mark.parametrize(
    ("path", "profile"),
    [(path, profile) for path in RECIPES for profile in profiles(path)],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_each_profile_is_valid(path: Path, profile: str) -> None:
    assert load_spec(path, profile=profile).steps


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_runs_on_the_bundled_model_and_data(path: Path) -> None:
    spec = load_spec(path)
    assert {entry.source for entry in spec.models.values()} == {"tiny"}
    sources = [getattr(step.params, "source", "tiny:") for step in spec.steps.values() if step.op == "load"]
    assert all(source.startswith("tiny:") for source in sources)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_method_names_its_source_and_what_differs(name: str) -> None:
    text = (ROOT / "specs" / f"{name}.yaml").read_text()
    header = text[: text.index("\ncaiflow: 1")]
    assert "# Reproduces:" in header
    assert "# Differs:" in header
    assert "full" in profiles(ROOT / "specs" / f"{name}.yaml")
