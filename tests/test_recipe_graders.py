"""Every recipe at full size has a model read what its answers do, for harm and for refusing what is harmless: phrases can't."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.spec.load import load_spec
from caiflow.operators.evaluation.params import EvaluateParams

FULL = [path for path in sorted((Path(__file__).parents[1] / "specs").glob("*.yaml")) if "\n  full:\n" in path.read_text()]


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_its_full_profile_grades_harm_and_over_refusal(path: Path) -> None:
    spec = load_spec(path, profile="full")
    measured = [step.params for step in spec.steps.values() if isinstance(step.params, EvaluateParams)]
    assert measured
    for params in measured:
        assert params.graders["harm"].sets == ("harmful",)
        assert set(params.graders["over_refusal"].sets) == set(params.inputs) - {"harmful"}
        trained = {step.name for step in spec.steps.values() if step.operator_type().kind == "model"}
        assert not trained & {grader.model for grader in params.graders.values()}, "no model grades itself after its training"
