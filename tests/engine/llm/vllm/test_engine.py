"""The real vLLM on a CPU; one start for all the tests of the base model and one for the adapter's."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Completion, Engine, ModelSource, Request, Sampling
from caiflow.engine.llm.files import load_model
from caiflow.engine.llm.load import load_engine
from caiflow.engine.spec.engine_args import EngineArgs
from support.agreement import assert_agree
from support.asking import ask, drops_one, mixed_requests, scored_requests, text

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
ARGS = {"max_num_seqs": 16, "max_model_len": 512, "kv_cache_memory_bytes": 64 << 20}


@pytest.fixture(scope="module")
def source(tiny_source: ModelSource) -> ModelSource:
    return tiny_source._replace(engine="vllm", options={"engine_args": ARGS})


@pytest.fixture(scope="module")
def engine(source: ModelSource) -> Iterator[Engine]:
    made = load_engine(source)
    yield made
    made.close()


def test_vllm_answers_what_transformers_answers_seeds_and_choices_included(engine: Engine, tiny_source: ModelSource) -> None:
    requests = mixed_requests()
    mine, theirs = ask(engine, requests), ask(load_engine(tiny_source), requests)
    assert_agree(tiny_source, requests, mine, theirs)
    alike = [(one.ids, other.ids) for one, other in zip(mine, theirs, strict=True) if one.text == other.text]
    assert sum(one is not None for one, _ in alike) > 2
    assert all(one == other for one, other in alike), "sampled ids, the end of the turn among them"


def test_vllm_scores_texts_as_transformers_does_cached_or_not(engine: Engine, tiny_source: ModelSource) -> None:
    requests = [*scored_requests(), *scored_requests()]
    reference = load_engine(tiny_source)
    for mine, theirs in zip(ask(engine, requests), ask(reference, requests), strict=True):
        assert isinstance(mine, Completion)
        assert isinstance(theirs, Completion)
        assert mine.prompt_tokens == theirs.prompt_tokens
        assert mine.prompt_logprobs == pytest.approx(theirs.prompt_logprobs, abs=1e-3)
        assert mine.greedy == theirs.greedy


def test_a_token_that_ends_a_turn_ends_the_answer_and_is_none_of_its_words(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Request(({"role": "user", "content": "How do I bake bread?"},), Sampling(max_tokens=20))
    ids = text(engine, asked).ids
    assert ids is not None
    monkeypatch.setattr(engine._renderer, "ends", lambda request: frozenset([ids[3]]))
    ended = text(engine, asked)
    assert ended.ids == ids[: ids.index(ids[3]) + 1]
    assert ended.finish == "stop"
    assert ended.text == engine._renderer.decode(ended.ids[:-1])


def test_the_oldest_row_waits_for_none_that_came_after(engine: Engine) -> None:
    """Sixteen are computed at once, so that of forty asked together the last would have to wait, were it not the oldest."""
    crowd = [Request(f"bread {n}", Sampling(max_tokens=20), turn=n + 1) for n in range(40)]
    engine.submit([*enumerate(crowd), (99, Request("the oldest", Sampling(max_tokens=20)))])
    came: list[int] = []
    while len(came) <= len(crowd):
        came += [number for number, _ in engine.step()]
    assert came.index(99) <= ARGS["max_num_seqs"]


def test_a_row_that_asks_on_is_waited_for(engine: Engine) -> None:
    assert engine.gate is not None
    ask(engine, [Request("bread", Sampling(max_tokens=2), turn=0, more=1, row="r")])
    assert engine.gate.wait_s() > 0
    engine.gate.over(["r"])
    assert engine.gate.wait_s() == 0


def test_an_answer_is_the_same_in_any_order(engine: Engine, tiny_source: ModelSource) -> None:
    requests = [request for request in mixed_requests() if not request.choices]
    order = list(range(len(requests)))
    random.Random(5).shuffle(order)
    shuffled = ask(engine, [requests[index] for index in order])
    again = [shuffled[order.index(index)] for index in range(len(requests))]
    assert_agree(tiny_source, requests, again, ask(engine, requests))


def test_a_prompt_longer_than_a_step_holds_is_sampled_by_its_seed_alone(engine: Engine, tiny_source: ModelSource) -> None:
    request = Request("bread " * 60, Sampling(temperature=1, max_tokens=8), seed=3)
    alone = text(engine, request)
    crowd = [Request(f"{n} " + "bread " * 60, Sampling(temperature=1, max_tokens=8), seed=n) for n in range(30)]
    assert_agree(tiny_source, [request], ask(engine, [*crowd, request])[-1:], [alone])


def test_a_stop_sequence_ends_the_answer_before_it(engine: Engine) -> None:
    whole = text(engine, Request("Mix flour", Sampling(max_tokens=30))).text
    cut = text(engine, Request("Mix flour", Sampling(max_tokens=30, stop=("never so", whole[9:14]))))
    assert (cut.text, cut.finish, cut.ids) == (whole[: whole.index(whole[9:14])], "stop", None)


def test_too_long_a_prompt_fails_alone(engine: Engine) -> None:
    long, short = ask(engine, [Request("bread " * 600), Request("bread", Sampling(max_tokens=3))])
    assert isinstance(long, EngineError)
    assert long.kind == "overflow"
    assert isinstance(short, Completion)


def test_an_argument_vllm_does_not_know_is_named_with_the_nearest(source: ModelSource) -> None:
    with pytest.raises(EngineError, match="got 'max_num_seq'; did you mean max_num_seqs"):
        load_engine(source._replace(options={"engine_args": {"max_num_seq": 3}}))


def test_vllm_has_every_argument_that_a_spec_may_set() -> None:
    from vllm.engine.arg_utils import EngineArgs as Theirs

    assert set(EngineArgs.model_fields) - {"device"} <= {field.name for field in dataclasses.fields(Theirs)}


def test_speculation_is_refused_since_seeded_draws_would_go_wrong(source: ModelSource) -> None:
    with pytest.raises(EngineError, match="speculative_config; leave it out"):
        load_engine(source._replace(options={"engine_args": {"speculative_config": {"method": "ngram"}}}))


def test_a_call_that_nobody_waits_for_is_dropped_alone(engine: Engine) -> None:
    drops_one(engine)


@pytest.mark.soak
def test_too_little_memory_is_told_in_plain_words(source: ModelSource, engine: Engine) -> None:
    engine.close()
    with pytest.raises(EngineError, match="lower max_model_len") as caught:
        load_engine(source._replace(options={"engine_args": {"kv_cache_memory_bytes": 1 << 18}}))
    assert caught.value.kind == "load"


@pytest.mark.soak
@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], ".*[qv]_proj", ["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]]
)
def test_an_adapter_is_served_without_merging(
    source: ModelSource, engine: Engine, tmp_path: Path, targets: list[str] | str
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    engine.close()
    torch.manual_seed(1)
    base = load_model(source._replace(engine="transformers"), "cpu")
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=targets, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path)
    adapted = source._replace(adapter=str(tmp_path))
    requests = [*mixed_requests(8), *(Request(f"How do I bake {n}", Sampling(max_tokens=8)) for n in range(4))]
    served, reference = load_engine(adapted), load_engine(adapted._replace(engine="transformers"))
    try:
        assert_agree(adapted, requests, ask(served, requests), ask(reference, requests))
        if "lm_head" in targets:
            refused = ask(served, scored_requests())
            assert all(isinstance(one, EngineError) and "merge: true" in one.hint for one in refused)
            assert_agree(adapted, requests, ask(served, requests), ask(reference, requests))
            return
        for mine, theirs in zip(ask(served, scored_requests()), ask(reference, scored_requests()), strict=True):
            assert isinstance(mine, Completion)
            assert isinstance(theirs, Completion)
            assert mine.prompt_logprobs == pytest.approx(theirs.prompt_logprobs, abs=1e-3)
    finally:
        served.close()
