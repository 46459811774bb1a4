"""What is said of a model that can't be loaded."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.files import load_error, load_model, load_weights


def hidden() -> Exception:
    """Return an error of a start that says less than what it came from, as vLLM's do."""
    try:
        try:
            raise ValueError("Invalid repetition\nrope_scaling has no factor")
        except ValueError as cause:
            raise RuntimeError("Engine core initialization failed. See root cause above.") from cause
    except RuntimeError as error:
        return error


def test_the_message_has_the_causes_last_line_and_the_report_the_whole() -> None:
    error = load_error("models/mine into vLLM", hidden())
    assert error.message == "can't load models/mine into vLLM: rope_scaling has no factor"
    for part in ("Invalid repetition", "Engine core initialization failed", "in hidden", "Traceback"):
        assert part in str(error)


def test_the_cause_survives_the_way_through_another_process() -> None:
    error = load_error("models/mine", hidden())
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.kind) == (str(error), "load")


def test_a_known_cause_is_advised_on_without_a_traceback() -> None:
    error = load_error("models/mine", MemoryError("CUDA out of memory"))
    assert "use a smaller model" in str(error)
    assert "Traceback" not in str(error)


@pytest.mark.parametrize("field", ["attn_implementation", "experts_implementation"])
def test_a_model_that_names_kernels_of_a_repository_is_refused(model: ModelSource, tmp_path: Path, field: str) -> None:
    folder = Path(shutil.copytree(model.path, tmp_path / "theirs"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, field: "kernels-community/flash-attn2"}))
    theirs = model._replace(path=str(folder))
    for load in (load_model, load_weights):
        with pytest.raises(EngineError, match=r"names the kernels of kernels-community/flash-attn2.*--trust-remote-code"):
            load(theirs)
