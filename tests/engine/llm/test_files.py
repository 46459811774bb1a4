"""What is said of a model that can't be loaded."""

from __future__ import annotations

import pickle

from caiflow.engine.llm.files import load_error


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
