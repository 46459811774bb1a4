"""Starts of the real vLLM that fail, in this process and in processes of vLLM's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.load import load_engine
from caiflow.engine.llm.vllm.failures import printed_errors
from caiflow.engine.llm.vllm.seeds import PROCESSORS

ARGS = {"max_num_seqs": 4, "max_model_len": 512, "kv_cache_memory_bytes": 64 << 20}
pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture
def source(tiny_source: ModelSource) -> ModelSource:
    return tiny_source._replace(engine="vllm", options={"engine_args": ARGS})


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have vLLM run its engine in a process of its own, as it does with several GPUs."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def failure(source: ModelSource) -> EngineError:
    with pytest.raises(EngineError) as caught:
        load_engine(source)
    assert caught.value.kind == "load"
    return caught.value


def test_a_processor_that_vllm_refuses_is_told_with_what_to_set(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    # the class for the other model runner is one that this runner really refuses
    monkeypatch.setitem(PROCESSORS, 1, PROCESSORS[2])
    error = failure(source)
    assert "doesn't take caiflow's draws: " in error.message
    assert "SeededDraws" in error.message
    assert "set `draws: vllm`" in error.hint
    assert "Traceback" in error.hint


def test_a_model_that_the_front_refuses_is_told_in_the_line_that_says_why(source: ModelSource, tmp_path: Path) -> None:
    shutil.copytree(source.path, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    message = failure(source._replace(path=str(tmp_path / "model"))).message
    assert "For further information" not in message
    assert "error" in message


def test_vllms_own_draws_are_refused_on_its_first_runner_whose_draws_are_others(source: ModelSource) -> None:
    assert (
        "means the draws of vLLM's second model runner, and its first one serves here"
        in failure(source._replace(draws="vllm")).message
    )


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="a GPU is here, which may well compute exactly")
def test_exact_answers_are_refused_by_name_where_the_device_has_no_such_mode(source: ModelSource) -> None:
    assert (
        "`exact: true`, vLLM's batch-invariant mode, which isn't to be had here, got a device of kind cpu"
        in failure(source._replace(exact=True)).message
    )


@pytest.mark.usefixtures("in_processes")
@pytest.mark.soak
def test_a_cause_that_only_a_process_of_vllms_printed_is_in_the_message_and_whole_in_the_hint(
    source: ModelSource, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source.path, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    save_file({name: value for name, value in load_file(weights).items() if "layers.2." not in name}, weights)
    error = failure(source._replace(path=str(tmp_path / "model")))
    assert "weights were not initialized" in error.message
    assert "root cause" not in error.message
    assert "Traceback" in error.hint.partition("vLLM's processes printed:")[2]
    assert "weights were not initialized" in "".join(capfd.readouterr()), "what is kept is let through"


@pytest.mark.soak
@pytest.mark.usefixtures("in_processes")
def test_advice_is_found_for_a_cause_that_only_a_process_of_vllms_printed(source: ModelSource) -> None:
    error = failure(source._replace(options={"engine_args": {**ARGS, "kv_cache_memory_bytes": 1 << 18}}))
    assert "max seq len" in error.message
    assert "lower max_model_len" in error.hint


def test_error_lines_are_found_under_the_names_of_processes_and_none_that_points_elsewhere() -> None:
    printed = "\n".join(
        [
            "(EngineCore pid=7) ERROR 11-29 02:00:00 [core.py:1108] Traceback (most recent call last):",
            "(EngineCore pid=7) ERROR 11-29 02:00:00 [core.py:1108] ValueError: No available memory for the cache blocks.",
            "\x1b[1;36m(EngineCore pid=7)\x1b[0;0m torch.OutOfMemoryError: CUDA out of memory.",
            "Exception: WorkerProc initialization failed due to an exception in a background process. See stack trace.",
            "an ordinary line: nothing",
        ]
    )
    assert printed_errors(printed) == [
        "ValueError: No available memory for the cache blocks.", "torch.OutOfMemoryError: CUDA out of memory.",
    ]  # fmt: skip
