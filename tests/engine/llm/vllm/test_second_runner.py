"""vLLM's second model runner, which serves on every GPU, here on a CPU with Triton's interpreter: the same answers as anywhere.

A process for each way of scheduling, since what chooses the runner must be set before vLLM is imported; one start of an engine
for all kinds of request, and one for an adapter.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import ModelSource, Request, Sampling
from caiflow.engine.llm.files import load_model
from caiflow.engine.llm.load import load_engine
from support.agreement import assert_agree
from support.asking import ask, mixed_requests, scored_requests
from support.vllm_process import answered as answers
from support.vllm_process import second_runner

ARGS = {"max_num_seqs": 16, "max_model_len": 512, "kv_cache_memory_bytes": 64 << 20, "max_num_batched_tokens": 512}
SCARCE = {**ARGS, "max_num_seqs": 8, "kv_cache_memory_bytes": 20 * 32 * 4096, "max_num_batched_tokens": 64}
"""A cache of 20 blocks for eight rows, and prompts read in pieces: rows are preempted and go on."""

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("triton"), reason="Triton, whose interpreter stands for a GPU, is not installed"),
]


def filtered_requests() -> list[Request]:
    """Draws under every filter and under the penalty, alone and together."""
    filters: list[dict[str, Any]] = [{"top_k": 20}, {"min_p": 0.05}, {"top_k": 5, "top_p": 0.8}]
    filters.append({"top_p": 0.7, "min_p": 0.1, "repetition_penalty": 1.2})
    asked = [Sampling(temperature=t, max_tokens=12, **how) for how in filters for t in (0.7, 1.3)]
    return [Request(f"How do I bake {seed}", sampling, seed) for seed, sampling in enumerate(asked)]


def own_requests() -> list[Request]:
    """Draws for vLLM's own sampler, without top-k and top-p, whose kernel Triton's interpreter can't run."""
    asked = [Sampling(temperature=t, min_p=p, max_tokens=12) for t in (0.8, 1.3) for p in (0.0, 0.02, 0.05)]
    return [Request(f"How do I bake {seed}", sampling, seed) for seed, sampling in enumerate(asked)]


def odd_requests() -> list[Request]:
    """A stop, a prompt too long, and an answer that the context cuts."""
    stop = Request("Mix flour", Sampling(max_tokens=30, stop=("e",)))
    return [stop, Request("bread " * 600), Request("bread " * 160, Sampling(temperature=1.0, max_tokens=600), seed=4)]


def long_requests() -> list[Request]:
    """More than a scarce cache holds at once."""
    texts = [f"How do I bake {n} loaves of bread, {'and water the rose, ' * (5 + n)}please?" for n in range(16)]
    return [Request(text, Sampling(temperature=0.8, max_tokens=24), seed=n) for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def adapted(tiny_source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    import torch
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(tiny_source, "cpu"), config).save_pretrained(folder)
    return tiny_source._replace(adapter=str(folder))


def on_vllm(source: ModelSource, args: dict[str, Any]) -> ModelSource:
    return source._replace(engine="vllm", options={"engine_args": args})


@pytest.fixture(scope="module", params=[pytest.param("in step", marks=pytest.mark.campaign), "one step ahead"])
def answered(request: pytest.FixtureRequest, tiny_source: ModelSource, adapted: ModelSource, tmp_path_factory: Any) -> Any:
    """What vLLM answers on its second runner: all kinds of request, rows that are preempted, and an adapter."""
    folder = tmp_path_factory.mktemp("answers")
    kinds = [*mixed_requests(12), *filtered_requests(), *odd_requests(), *scored_requests()]
    asked = [(on_vllm(tiny_source, ARGS), kinds), (on_vllm(tiny_source, SCARCE), long_requests())]
    asked.append((on_vllm(adapted, ARGS), mixed_requests(8)))
    own = on_vllm(tiny_source, ARGS)._replace(draws="vllm")
    asked += [(own, own_requests()), (own, own_requests()[::-1][:3])]
    ahead = request.param == "one step ahead"
    found = answers(folder, asked, **second_runner(ahead=ahead), CAIFLOW_TEST_NO_WAITING="1")
    assert {(one["runner"], one["ahead"]) for one in found} == {(2, ahead)}
    return {
        "kinds": (kinds, found[0]), "scarce": (long_requests(), found[1]), "adapter": (mixed_requests(8), found[2]),
        "own draws": (found[3]["answers"], found[4]["answers"]),
    }  # fmt: skip


def same(source: ModelSource, requests: list[Request], found: dict[str, Any]) -> None:
    """Hold vLLM's answers against those of the transformers engine; what both refuse, for the same kind of reason."""
    theirs = ask(load_engine(source), requests)
    right = [not isinstance(answer, EngineError) for answer in theirs]
    for mine, answer in zip(found["answers"], theirs, strict=True):
        if isinstance(answer, EngineError):
            assert isinstance(mine, EngineError)
            assert mine.kind == answer.kind
    asked, ours, others = (
        [one for one, ok in zip(of, right, strict=True) if ok] for of in (requests, found["answers"], theirs)
    )
    assert_agree(source, asked, ours, others)


@pytest.mark.soak
def test_every_kind_of_request_is_answered_as_on_transformers(answered: Any, tiny_source: ModelSource) -> None:
    same(tiny_source, *answered["kinds"])


@pytest.mark.soak
def test_rows_that_are_preempted_and_read_in_pieces_draw_the_same(answered: Any, tiny_source: ModelSource) -> None:
    assert answered["scarce"][1]["preempted"] > 0
    same(tiny_source, *answered["scarce"])


@pytest.mark.soak
def test_an_adapter_answers_as_on_transformers(answered: Any, adapted: ModelSource) -> None:
    same(adapted, *answered["adapter"])


@pytest.mark.soak
def test_vllms_own_draws_follow_the_seed_alone_and_are_others(answered: Any, tiny_source: ModelSource) -> None:
    crowded, few = answered["own draws"]
    assert few == crowded[::-1][:3]
    ours = ask(load_engine(tiny_source), own_requests())
    assert sum(one == other for one, other in zip(crowded, ours, strict=True)) < len(ours) / 2
