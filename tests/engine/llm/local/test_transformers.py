from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Answer, Completion, Engine, ModelSource, Request, Sampling
from caiflow.engine.llm.files import load_model, load_renderer
from caiflow.engine.llm.load import load_engine
from caiflow.engine.llm.local.attention import spans
from caiflow.engine.llm.local.kv import Kept, KeptRows
from caiflow.engine.llm.local.transformers import TransformersEngine
from caiflow.engine.llm.render import Renderer
from support.asking import WORDS, ask, drops_one, mixed_requests, scored_requests, text
from support.small_models import SHAPE, small_model


@pytest.fixture(scope="module")
def engine(tiny_source: ModelSource) -> Engine:
    return load_engine(tiny_source._replace(options={"engine_args": {"max_num_seqs": 16, "max_model_len": 512}}))


@pytest.fixture(scope="module")
def model(tiny_source: ModelSource):
    return load_model(tiny_source, "cpu")


def test_greedy_answers_are_those_of_the_librarys_generate(engine: Engine, model, tiny_source: ModelSource) -> None:
    renderer = load_renderer(tiny_source)
    request = Request("How do I bake", Sampling(max_tokens=20))
    ids = torch.tensor([renderer.ids(request)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0)
    drawn = out[0, ids.shape[1] :].tolist()
    assert text(engine, request) == Completion(renderer.decode(drawn), "length", ids.shape[1], 20, ids=tuple(drawn))


def test_a_chat_ends_where_its_template_ends_a_turn_whatever_a_base_model_calls_its_end(
    engine: Engine, model, tiny_source: ModelSource
) -> None:
    tokenizer = load_renderer(tiny_source).tokenizer
    other = Renderer(tokenizer, tokenizer.chat_template.replace("eos_token", f"'{tokenizer.eos_token}'"))
    tokenizer.eos_token = "<|other|>"
    base = copy.copy(model)
    base.generation_config = GenerationConfig()
    asked = Request(({"role": "user", "content": "How do I bake bread?"},), Sampling(max_tokens=60))
    plain = asked._replace(prompt=other.text(asked))
    base_engine = TransformersEngine(base, other, capacity=4, prefill_tokens=512, context=512)
    assert text(base_engine, asked) == text(engine, asked)
    assert len(text(base_engine, plain).text) > len(text(engine, asked).text)


def test_an_answer_is_the_same_alone_and_in_any_batch(engine: Engine) -> None:
    requests = mixed_requests()
    together = ask(engine, requests)
    order = list(range(len(requests)))
    random.Random(5).shuffle(order)
    shuffled = ask(engine, [requests[index] for index in order])
    alone = [ask(engine, [request])[0] for request in requests]
    for index, request in enumerate(requests):
        answers = (together[index], shuffled[order.index(index)], alone[index])
        if request.choices:
            for answer in answers[1:]:
                assert answer.logprobs == pytest.approx(answers[0].logprobs, abs=1e-4)
        else:
            assert answers[0] == answers[1] == answers[2]


def test_seeds_decide_and_seeds_differ(engine: Engine) -> None:
    hot = Sampling(temperature=1, max_tokens=12)
    texts = [text(engine, Request("Mix flour", hot, seed)).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_a_stop_sequence_ends_the_answer_before_it_even_across_tokens(engine: Engine) -> None:
    whole = text(engine, Request("Mix flour", Sampling(max_tokens=30))).text
    stop = whole[9:14]
    cut = text(engine, Request("Mix flour", Sampling(max_tokens=30, stop=("never so", stop))))
    assert (cut.text, cut.finish, cut.ids) == (whole[: whole.index(stop)], "stop", None)
    assert cut.completion_tokens < 30


def test_choices_are_answered_with_the_log_softmax_of_the_next_token(engine: Engine, model, tiny_source) -> None:
    renderer = load_renderer(tiny_source)
    request = Request(({"role": "user", "content": "Which?"},), prefill="The answer is (", choices=("A", "B"))
    ids = torch.tensor([renderer.ids(request)])
    expected = torch.log_softmax(model(ids).logits[0, -1], -1)
    got = text(engine, request).logprobs
    assert got is not None
    assert got == pytest.approx({c: expected[i].item() for c, i in renderer.choices(request).items()}, abs=1e-4)


def test_scores_are_the_librarys_own_loss(engine: Engine, model, tiny_source: ModelSource) -> None:
    renderer = load_renderer(tiny_source)
    for request, answer in zip(scored_requests(), ask(engine, [*scored_requests(), *mixed_requests(8)]), strict=False):
        rendered = renderer.scored(request)
        ids, mask = torch.tensor([rendered.ids]), torch.tensor([rendered.mask])
        labels = ids.where(mask == 1, -100)
        assert isinstance(answer, Completion), answer
        assert answer.prompt_logprobs is not None
        assert len(answer.prompt_logprobs) == int(mask.sum())
        loss = -sum(answer.prompt_logprobs) / len(answer.prompt_logprobs)
        assert loss == pytest.approx(model(ids, labels=labels).loss.item(), rel=1e-4)


def test_scores_count_a_text_after_bos_and_an_assistants_words(engine: Engine, tiny_source: ModelSource) -> None:
    renderer = load_renderer(tiny_source)
    plain, talk, part = scored_requests()[0], *scored_requests()[-3:-1]
    assert sum(renderer.scored(plain).mask) == len(renderer.ids(plain)) - 1
    said = renderer.scored(talk)
    scored = [token for token, counts in zip(said.ids, said.mask, strict=True) if counts]
    assert renderer.tokenizer.decode(scored) == "Mix flour, then wait.<|end|>Bake it.<|end|>"
    only = renderer.scored(part)
    assert renderer.tokenizer.decode([t for t, counts in zip(only.ids, only.mask, strict=True) if counts]) == "Mix flour, then"


def test_what_the_model_says_by_itself_is_greedy(engine: Engine) -> None:
    said = {word: text(engine, Request(word, Sampling(max_tokens=1))).text for word in WORDS}
    word, says = next((word, says) for word, says in said.items() if says.isascii() and says.strip().isalpha())
    own, other = (text(engine, Request(word, score=True, prefill=prefill)) for prefill in (says, f"{says} water oven"))
    assert own.prompt_logprobs is not None
    assert (len(own.prompt_logprobs), own.greedy, other.greedy) == (1, True, False)


def test_a_text_without_a_token_to_score_fails_alone(engine: Engine) -> None:
    question = ({"role": "user", "content": "How?"},)
    nothing, fine = ask(engine, [Request(question, score=True), scored_requests()[3]])
    assert isinstance(nothing, EngineError)
    assert nothing.kind == "empty"
    assert isinstance(fine, Completion)


def test_scores_need_little_memory_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from caiflow.engine.llm.local import likelihood

    whole = ask(engine, scored_requests())
    monkeypatch.setattr(likelihood, "_MOST_SCORES", 1)
    monkeypatch.setattr(likelihood, "_POSITIONS", 7)
    for mine, other in zip(ask(engine, scored_requests()), whole, strict=True):
        assert mine.prompt_logprobs == pytest.approx(other.prompt_logprobs, abs=1e-4)


def test_too_long_a_prompt_fails_alone(engine: Engine) -> None:
    long, short = ask(engine, [Request("bread " * 600), Request("bread", Sampling(max_tokens=3))])
    assert isinstance(long, EngineError)
    assert (long.kind, long.retry) == ("overflow", False)
    assert isinstance(short, Completion)


def test_an_answer_ends_where_the_context_does(engine: Engine, tiny_source: ModelSource) -> None:
    prompt = "bread " * 100
    tokens = len(load_renderer(tiny_source).ids(Request(prompt)))
    answer = text(engine, Request(prompt, Sampling(max_tokens=4096)))
    assert (answer.finish, answer.prompt_tokens + answer.completion_tokens) == ("length", 512)
    assert answer.prompt_tokens == tokens


def test_short_answers_come_back_before_long_ones(engine: Engine) -> None:
    engine.submit([(0, Request("a", Sampling(max_tokens=200))), (1, Request("b", Sampling(max_tokens=2)))])
    first: list[tuple[int, Answer]] = []
    while not first:
        first = engine.step()
    assert [number for number, _ in first] == [1]
    while not (rest := engine.step()):
        pass
    assert rest[0][0] == 0


def test_an_idle_engine_returns_nothing(engine: Engine) -> None:
    assert engine.step(0.01) == []


def test_an_adapter_changes_the_answers(tiny: Path, tiny_source: ModelSource, tmp_path: Path, engine: Engine) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(load_model(tiny_source, "cpu"), LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path)
    request = Request("How do I bake", Sampling(max_tokens=10))
    with_adapter = load_engine(tiny_source._replace(adapter=str(tmp_path)))
    assert text(with_adapter, request).text != text(engine, request).text


@pytest.mark.parametrize(("most", "kind"), [(3, None), (0, "memory")])
def test_short_memory_lowers_the_number_at_once_and_loses_nothing(
    tiny_source: ModelSource, engine: Engine, most: int, kind: str | None
) -> None:
    model = load_model(tiny_source, "cpu")

    def full(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].shape[0] > most:
            raise torch.OutOfMemoryError("no memory left")

    model.register_forward_pre_hook(full, with_kwargs=True)
    small = TransformersEngine(model, load_renderer(tiny_source), capacity=16, prefill_tokens=4096, context=512)
    requests = mixed_requests(12)
    answers = ask(small, requests)
    if kind is not None:
        assert {answer.kind for answer in answers if isinstance(answer, EngineError)} == {kind}
        return
    for mine, theirs in zip(answers, ask(engine, requests), strict=True):
        assert isinstance(mine, Completion)
        assert isinstance(theirs, Completion)
        assert mine.text == theirs.text
    assert small.capacity <= 3


@pytest.mark.parametrize("family", ["mistral", "mamba", "gpt2"])
def test_other_kinds_of_models_answer_the_same_in_a_batch(family: str, tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    extra = {
        "mistral": {"sliding_window": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64},
        "mamba": {"state_size": 8, "expand": 2},
        "gpt2": {"n_head": 4, "n_positions": 512},
    }[family]
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None, **extra,
    )  # fmt: skip
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = load_engine(ModelSource(str(tmp_path), identity=family, dtype="float32", engine="transformers"))
    requests = [r._replace(choices=(), prefill="") for r in mixed_requests(8)]
    together = ask(engine, requests)
    assert all(isinstance(answer, Completion) for answer in together)
    assert together == [ask(engine, [request])[0] for request in requests]
    for one, request in zip(ask(engine, scored_requests()), scored_requests(), strict=True):
        assert one.prompt_logprobs == pytest.approx(text(engine, request).prompt_logprobs, abs=1e-4)


def test_a_missing_model_is_reported_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"can't load .*nowhere.*hub id") as caught:
        load_engine(ModelSource(str(tmp_path / "nowhere"), identity="x", engine="transformers"))
    assert caught.value.kind == "load"


def test_a_closed_engine_lets_go_of_its_model(tiny_source: ModelSource) -> None:
    engine = load_engine(tiny_source)
    text(engine, Request("a", Sampling(max_tokens=2)))
    engine.close()
    assert engine.step(0) == []


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A random model whose four heads share two of keys and values."""
    return small_model(tmp_path_factory.mktemp("sharing"), shape=SHAPE.model_copy(update={"num_key_value_heads": 2}))


def test_heads_that_share_keys_answer_as_with_a_copy_for_each(sharing: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(" ".join(WORDS[:count]), Sampling(max_tokens=12)) for count in (1, 3, 7, 2)]
    with monkeypatch.context() as patched:
        patched.setattr("caiflow.engine.llm.local.attention.share_keys", lambda _model: None)
        copied = ask(load_engine(sharing), requests)
    fed: list[int] = []
    forward = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *given: object, **more: object) -> torch.Tensor:
        fed.append(key.shape[1])
        return forward(query, key, *given, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    assert ask(load_engine(sharing), requests) == copied
    layers = SHAPE.num_hidden_layers
    assert fed[-layers:] == [2] * layers  # heads of keys that the last token's attention read: no copies


def test_a_rows_next_call_reads_only_what_is_new(sharing: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(sharing)
    first = [
        Request(" ".join([*WORDS, *WORDS[:count]]), Sampling(max_tokens=4 + count), more=1, row=f"r{count}")
        for count in range(3)
    ]
    answers = ask(engine, first)
    ask_on = [
        one._replace(prompt=f"{one.prompt}{answer.text} {WORDS[0]}", more=0) for one, answer in zip(first, answers, strict=True)
    ]
    read: list[int] = []
    padded = TransformersEngine._padded

    def watched(self: TransformersEngine, group: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        read.extend(len(row.ids) - row.begun for row in group)
        return padded(self, group)

    monkeypatch.setattr(TransformersEngine, "_padded", watched)
    going_on = ask(engine, ask_on)
    assert len(read) == 3
    assert max(read) < 8
    read.clear()
    assert ask(load_engine(sharing), ask_on) == going_on
    assert max(read) > 8
    read.clear()
    ask(engine, ask_on)
    assert max(read) > 8  # nothing is kept of rows that were to ask no more


def test_a_step_ends_where_a_row_is_about_to_ask_on(engine: Engine) -> None:
    short, long = (Request("Mix flour", Sampling(max_tokens=most), more=1, row=f"away {most}") for most in (2, 200))
    engine.submit([(1, short), (2, long)])
    while not engine.step():
        pass
    assert engine.step(60) == []  # after a pass, for the row's next call to be taken in
    assert engine.gate is not None
    engine.gate.over([short.row])
    while not engine.step(60):
        pass
    engine.gate.over([long.row])


def test_what_is_kept_takes_up_no_more_than_it_may() -> None:
    def kept(tokens: int) -> Kept:
        return Kept(np.arange(tokens), [(torch.zeros(2, tokens, 4), torch.zeros(2, tokens, 4))])

    rows = KeptRows()
    for name in "abc":
        rows.keep(name, kept(5), 3 * kept(5).size_bytes)
    rows.keep("a", kept(6), 3 * kept(5).size_bytes)
    assert [rows.find(name) is not None for name in "abc"] == [True, False, True]
    rows.drop("a")
    rows.keep("d", kept(10), 3 * kept(5).size_bytes)
    assert [rows.find(name) is not None for name in "acd"] == [False, True, True]
    rows.keep("e", kept(16), 3 * kept(5).size_bytes)
    assert [rows.find(name) is not None for name in "cde"] == [False] * 3


@pytest.mark.parametrize(
    ("lengths", "column_bytes", "expected"),
    [
        ([500, 500, 500], 1000, [(0, 3, 500)]),
        ([500, 500, 900, 890], 1000, [(0, 2, 500), (2, 4, 900)]),
        ([500, 480, 590], 1, [(0, 3, 590)]),  # columns as small as these are read sooner than a product begins
        ([0, 500, 0, 510, 0], 1000, [(1, 2, 500), (3, 4, 510)]),
        ([0, 50, 0, 51, 0], 1000, [(1, 4, 51)]),
        ([0, 0], 1000, []),
    ],
)
def test_rows_of_about_one_length_are_attended_over_together(
    lengths: list[int], column_bytes: int, expected: list[tuple[int, int, int]]
) -> None:
    assert spans(lengths, column_bytes) == expected


def test_a_short_row_reads_no_columns_of_a_long_one(sharing: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(" ".join(WORDS[:3] * count), Sampling(max_tokens=12)) for count in (1, 20, 2, 21)]
    alone = [ask(load_engine(sharing), [request])[0] for request in requests]
    monkeypatch.setattr("caiflow.engine.llm.local.attention._PRODUCT_BYTES", 0)
    read: list[tuple[int, ...]] = []
    forward = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *given: object, **more: object) -> torch.Tensor:
        read.append((len(key), key.shape[2]))
        return forward(query, key, *given, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    assert ask(load_engine(sharing), requests) == alone
    last = read[-4:]
    assert [rows for rows, _ in last] == [1] * 4
    assert max(width for _, width in last) > 3 * min(width for _, width in last)


def test_a_large_model_is_spread_over_more_cores_unless_the_spec_says_how_many(
    sharing: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caiflow.engine.llm.load._WORTH_SPREADING", 1000)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: range(3), raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        load_engine(sharing._replace(options={"num_cpus": 1}))
        assert torch.get_num_threads() == 1
        load_engine(sharing)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_call_that_nobody_waits_for_is_dropped_alone(engine: Engine) -> None:
    drops_one(engine)
