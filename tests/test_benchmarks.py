"""The benchmarks' own parts: equal work for all contenders, and answers that show it was done."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from benchmarks import draws, gpu
from benchmarks.chain import CALLS, LONGEST, make_work, save_model
from benchmarks.contenders import LOADERS
from benchmarks.streaming import Seat, rate, spread
from benchmarks.whole import write_spec

from caiflow.engine.spec.load import load_spec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("bench") / "model")


def test_the_work_is_the_same_every_time() -> None:
    assert make_work(40, "long_tailed") == make_work(40, "long_tailed")
    lengths = [length for row in make_work(512, "long_tailed").lengths for length in row]
    assert min(lengths) >= 2
    assert max(lengths) == LONGEST
    assert sorted(lengths)[len(lengths) // 2] in range(15, 26)
    assert make_work(512, "even").tokens == 512 * CALLS * 32
    assert len(set(make_work(512, "even").prompts)) == 512


def test_answers_are_as_long_as_asked_and_equal(model: Path) -> None:
    from transformers import AutoTokenizer

    work = make_work(4, "long_tailed")
    contenders = [LOADERS[name](str(model)) for name in ("one_by_one", "caiflow_transformers")]
    notebook, caiflow = (contender.run(work) for contender in contenders)
    for contender in contenders:
        contender.close()
    assert [list(row) for row in caiflow] == [list(row) for row in notebook]
    tokenizer = AutoTokenizer.from_pretrained(model)
    for said, lengths in zip(notebook, work.lengths, strict=True):
        for text, length in zip(said, lengths, strict=True):
            assert 0 < len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 2 * length


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.soak
def test_contenders_on_vllm_answer_orders_and_count_steps(model: Path) -> None:
    with ExitStack() as stack:
        seats = [Seat(contender, model) for contender in ("staged", "caiflow_vllm")]
        for seat in seats:
            stack.callback(seat.close)
            seat.ready()
        staged, ours = (seat.run(8, "long_tailed") for seat in seats)
    assert staged["tokens"] == ours["tokens"] == make_work(8, "long_tailed").tokens
    longest = [max(row[stage] for row in make_work(8, "long_tailed").lengths) for stage in range(CALLS)]
    assert sum(longest) <= staged["steps"] <= sum(longest) + 2 * CALLS
    assert 0 < ours["steps"] < staged["steps"]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.campaign
def test_draws_are_measured_for_each_way_of_sampling() -> None:
    lines = draws.measure(repeats=1)
    assert len(lines) == len(draws.WAYS)
    assert all(line["ours"] > 0 and line["ratio"] == round(line["ours"] / line["theirs"], 2) for line in lines)


def test_the_spec_of_whole_processes_is_valid(model: Path, tmp_path: Path) -> None:
    for engine in ("vllm", "transformers"):
        assert list(load_spec(write_spec(tmp_path, model, 5, engine), allowed=[model]).steps) == [
            "source",
            "response",
            "critique",
            "revision",
        ]


def test_rates_are_medians() -> None:
    runs = [{"rows": 10, "seconds": seconds} for seconds in (1.0, 5.0, 2.0)]
    assert rate(runs) == 5.0
    assert spread(runs) == "2.0 to 10.0"


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU")
def test_the_gpu_script_says_so_without_one() -> None:
    with pytest.raises(SystemExit, match="no CUDA device here"):
        gpu.main(["--size", "1b"])
