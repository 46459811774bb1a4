"""What `plan --forecast` says that calls take: held against the tokenizer, the ledger, and what a real vLLM then computes."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.llm.order.blocks import Prefixes
from caiflow.engine.plan.forecast import Forecasts, foresee
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from support.commands import command_here

SPEC = """\
caiflow: 1
name: foreseen
seed: 5
models: {{base: {{source: tiny{more}}}}}
steps:
  rows: {{op: load, source: rows.jsonl, limit: {limit}}}
  answer: {{op: generate, input: rows, model: base, sampling: {{temperature: 0.7, max_tokens: 48}}}}
  critique: {{op: critique, input: answer, model: base, few_shot: 2, sampling: {{max_tokens: 48}}}}
  revision: {{op: revise, input: critique, model: base, sampling: {{max_tokens: 48}}}}
  clean: {{op: filter, input: revision, drop: [unchanged]}}
  taught: {{op: sft, input: clean, model: base}}
  again: {{op: generate, input: rows, model: taught, samples: 2, sampling: {{temperature: 1, max_tokens: 8}}}}
  pairs: {{op: judge, input: again, model: base}}
constitution: harmless
"""
CHAIN = ("answer", "critique", "revision")
TALKS = (("talk", "base", "other"), ("later", "other", "taught"))
"""Steps, who answers in them, and who says the user's turns."""
WORDS = "How do I open, read and copy what lies in the grey box behind the door of my neighbour"


def write(folder: Path, rows: int, more: str = "", limit: int = 10_000) -> Path:
    folder.mkdir(exist_ok=True)
    asked = [WORDS[: 40 + 11 * n % 40] + f" number {n}?" for n in range(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    (folder / "spec.yaml").write_text(SPEC.format(more=more, limit=limit))
    return folder / "spec.yaml"


def forecast(path: Path, **options: Any) -> tuple[Forecasts, dict[str, Any]]:
    found = foresee(load_spec(path), Store(path.parent / "home"), **options)
    return found, {one.step: one for one in found.steps}


def test_a_prefix_is_computed_once() -> None:
    prefixes = Prefixes(4)
    assert prefixes.computed(range(10)) == 10
    assert prefixes.computed([*range(8), 99]) == 1, "two whole blocks are known"
    assert prefixes.computed(range(8)) == 1, "an answer comes of one token at least"
    assert prefixes.computed([7, *range(1, 8)]) == 8, "a block is known by all that stands before it, too"


def test_prompts_are_counted_by_the_models_own_tokenizer(tmp_path: Path) -> None:
    from caiflow.engine.llm.base import Message, Request
    from caiflow.engine.llm.files import load_renderer
    from caiflow.engine.plan.components import Resolver

    spec = load_spec(path := write(tmp_path, 6))
    source = Resolver(spec, Store(tmp_path / "home")).model("base")
    assert source is not None
    renderer = load_renderer(source)
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    found, by_step = forecast(path, tokens_per_second=24.0)
    expected = sum(len(renderer.ids(Request((Message(role="user", content=text),)))) for text in prompts)
    assert by_step["answer"][:4] == ("answer", "base", 6, expected)
    assert (by_step["answer"].completion, by_step["answer"].at_most) == (6 * 48, True), "nothing was answered yet"
    assert by_step["answer"].seconds == 12.0
    assert by_step["critique"].prompt > by_step["answer"].prompt + 6 * 48, "it is shown answer and examples"
    assert by_step["again"].model == "taught", "a model that isn't made yet reads as that which it is trained from"
    assert by_step["again"].prompt == 2 * by_step["answer"].prompt
    assert ({*by_step}, found.unknown) == ({*CHAIN, "again", "pairs"}, {})


def test_what_is_answered_already_is_not_asked_and_stands_in_for_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, 6)
    _answer(path, "answer", ["Take a key.", "Ask them first, and wait for what they say."])
    _, by_step = forecast(path)
    assert (by_step["answer"].calls, by_step["answer"].at_most) == (4, False)
    assert by_step["answer"].completion < 4 * 20, "as long as answers were"
    assert by_step["critique"].calls == 6


def test_an_answer_takes_the_tokens_that_were_counted_not_those_of_its_words_alone(tmp_path: Path) -> None:
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.store.ledger import Ledger

    spec, store = load_spec(path := write(tmp_path, 6)), Store(tmp_path / "home")
    step = Resolver(spec, store).flow_step(spec.steps["answer"])
    assert step is not None
    with Ledger(store.ledger_dir, step.namespace) as ledger:
        stopped = {"text": "Take a key.", "finish": "stop", "prompt_tokens": 9, "completion_tokens": 31}
        ledger.append(bytes(16), stopped)  # 31 with the words by which it was stopped, as thoughts of a judge are
    _, by_step = forecast(path, until="answer")
    assert (by_step["answer"].completion, by_step["answer"].at_most) == (6 * 31, False)


def test_a_step_s_second_model_has_tokens_and_prices_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, 6)
    asks = "op: converse, input: rows, turns: 3, end_at: [], sampling: {max_tokens: 16}, user: {sampling: {max_tokens: 8}, "
    talks = [f"  {step}: {{{asks}model: {user}}}, model: {model}}}" for step, model, user in TALKS]
    other = "other: {source: their-model, base_url: 'http://127.0.0.1:9/v1', prices: {prompt: 1, completion: 4}}"
    written = path.read_text().replace("tiny}}", f"tiny}}, {other}}}").replace("constitution: harmless\n", "\n".join(talks))
    path.write_text(f"{written}\nconstitution: harmless\n")
    found = {(one.step, one.model): one for one in foresee(load_spec(path), Store(tmp_path / "home")).steps}
    own, their = found["talk", "base"], found["talk", "other"]
    assert (own.calls, own.completion, own.cost) == (6 * 3, 6 * 3 * 16, None), "each turn of the assistant"
    assert (their.calls, their.completion) == (6 * 2, 6 * 2 * 8), "and those of the user between them"
    assert their.cost == pytest.approx((their.prompt + 4 * their.completion) / 1e6)
    assert found["later", "taught"].calls == 6 * 2, "it reads as that which it is trained from"
    assert found["later", "taught"].prompt != their.prompt, "by that one's tokenizer"
    assert found["later", "other"].calls == 6 * 3


def test_the_first_rows_of_many_tell_what_all_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caiflow.engine.plan.forecast.MOST_ROWS", 80)
    few, many = (forecast(write(tmp_path / str(rows), rows), until="answer")[1] for rows in (80, 160))
    for name in ("calls", "prompt", "completion"):
        assert getattr(many["answer"], name) == pytest.approx(2 * getattr(few["answer"], name), rel=0.02)


def test_the_command_says_it_with_price_and_what_it_rests_on(tmp_path: Path) -> None:
    path = write(tmp_path, 6)
    served = "{source: their-model, base_url: http://127.0.0.1:9/v1, prices: {prompt: 1, completion: 4}}"
    chain = [line for line in path.read_text().splitlines() if not line.startswith(("  taught", "  again", "  pairs"))]
    path.write_text("\n".join(chain).replace("{source: tiny}", served))
    home = {"CAIFLOW_HOME": str(tmp_path / "home")}
    done = command_here(tmp_path, "plan", "spec.yaml", "--forecast", "--json", **home)
    assert done.returncode == 0, done.stderr
    answer, *_ = (told := json.loads(done.stdout))["forecast"]
    assert told["not_foreseen"] == {}
    assert answer["cost"] == pytest.approx((answer["prompt"] + 4 * answer["completion"]) / 1e6)
    shown = command_here(tmp_path, "plan", "spec.yaml", "--forecast", **home).stdout
    assert "of them new" in shown
    assert "≤ 6" in shown
    assert "--sample 20" in shown


def _answer(path: Path, name: str, texts: list[str]) -> None:
    """Leave the answers of a step's first rows in the ledger, as a run that was ended would."""
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.store.ledger import Ledger
    from support.tables import run_table

    spec, store = load_spec(path), Store(path.parent / "home")
    step = Resolver(spec, store).flow_step(spec.steps[name])
    assert step is not None
    rows, _ = run_table(spec.operators["rows"], path.parent / "made")
    with Ledger(store.ledger_dir, step.namespace) as ledger:
        for row, text in zip(rows.pylist(), texts, strict=False):
            made = {"response": text, "truncated": False, "thought": None}
            ledger.append(step.row_key(step.view(row)), {"out": [made], "tokens": 30})


@pytest.mark.soak
@pytest.mark.vllm
def test_a_real_vllm_then_computes_what_was_foretold(tmp_path: Path) -> None:
    from benchmarks.prefixes import Counter

    from caiflow.engine.flow.stream import Flow
    from caiflow.engine.llm.client import EngineClient
    from caiflow.engine.llm.host import EngineHost, LocalLink
    from caiflow.engine.llm.load import load_engine
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.rows.folder import RowsWriter
    from caiflow.engine.store.ledger import Ledger
    from support.tables import run_table

    block = ", engine: vllm, engine_args: {block_size: 32, max_model_len: 1024, max_num_seqs: 16}"
    path = write(tmp_path, 60, block)
    store = Store(tmp_path / "home")
    spec = load_spec(path)
    resolver = Resolver(spec, store)
    source = resolver.model("base")
    steps = [resolver.flow_step(spec.steps[name]) for name in CHAIN]
    assert source is not None
    loaded: list[Any] = []

    def start() -> Any:
        loaded.append(load_engine(source))
        return loaded[0]

    async def run(host: EngineHost, rows: Any, out: Path) -> dict[str, Any]:
        with ExitStack() as stack:
            ledgers = {step.namespace: stack.enter_context(Ledger(store.ledger_dir, step.namespace)) for step in steps}
            columns, writers = dict(rows.columns), {}
            for step in steps:
                columns = {name: kind for name, kind in columns.items() if name not in step.operator.outdates()}
                columns |= step.operator.writes()
                writers[step.name] = stack.enter_context(RowsWriter(out / step.name, dict(columns)))
            async with EngineClient([LocalLink(host)]) as client:
                return await Flow(steps, ledgers, {"base": client}, writers).run(rows)

    host = EngineHost(start)
    try:
        trial = load_spec(path, sets=["steps.rows.limit=15"])
        asyncio.run(run(host, run_table(trial.operators["rows"], tmp_path / "few")[0], tmp_path / "trial"))
        _, foretold = forecast(path)
        loaded[0]._engine.reset_prefix_cache()  # another run begins with an engine of its own
        counter = Counter(loaded[0]._engine)
        tallies = asyncio.run(run(host, run_table(spec.operators["rows"], tmp_path / "all")[0], tmp_path / "whole"))
        computed = counter.tokens - counter.decoded()
    finally:
        host.close()
    for name in CHAIN:
        assert foretold[name].calls == tallies[name].calls
        assert foretold[name].prompt == pytest.approx(tallies[name].prompt_tokens, rel=0.02)
        assert foretold[name].completion == pytest.approx(tallies[name].completion_tokens, rel=0.15)
    assert sum(foretold[name].computed for name in CHAIN) == pytest.approx(computed, rel=0.05)
