"""The real model through every operator, on both engines and in both formats, and through kills in each phase of its recipe."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from benchmarks.training import SIDES, make_data

from caiflow.engine.llm.gguf import unpack
from caiflow.engine.llm.model_files import PACKAGED, packaged_file
from caiflow.engine.plan.model_identity import resolve_model
from caiflow.engine.spec.grammar import ModelEntry
from caiflow.engine.store.artifacts import Store
from support.events import read_events
from support.kills import ledger_records, rows_by_step, start
from support.source_tree import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(packaged_file("smollm2") is None, reason=f"needs the model smollm2: {PACKAGED['smollm2'].command}"),
]
RECIPE = ROOT / "specs" / "real.yaml"
PHASES = (
    "response", "critique", "revision", "answers", "sl_cai", "pair", "preference", "rl_cai", "judged_by_text", "scores",
)  # fmt: skip
"""The steps of the recipe that ask or train a model, which is where its time goes."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that the runs of this file share: the weights are unpacked once."""
    return tmp_path_factory.mktemp("real") / "home"


CHAIN = """
caiflow: 1
name: every-operator
constitution: harmless
models:
  base: {{source: smollm2, engine: {engine}, engine_args: {{max_model_len: 1536, kv_cache_memory_bytes: 268435456}}}}
steps:
  prompts: {{op: load, source: "plain:red_team_train.jsonl", limit: 8}}
  answers: {{op: generate, input: prompts, model: base, sampling: {{max_tokens: 32, repetition_penalty: 1.15}}}}
  critique: {{op: critique, input: answers, model: base, few_shot: 2, format: {format}, sampling: {{max_tokens: 40}}}}
  revision: {{op: revise, input: critique, model: base, few_shot: 2, format: {format}, sampling: {{max_tokens: 40}}}}
  clean: {{op: filter, input: revision, drop: [duplicates]}}
  lessons: {{op: mix, inputs: {{clean: {{rows: all}}}}}}
  sl: {{op: sft, input: lessons, model: base, lora: {{rank: 4}}, max_length: 256, max_steps: 2}}
  pairs: {{op: generate, input: prompts, model: sl, samples: 2, sampling: {{temperature: 1, max_tokens: 24}}}}
  judged: {{op: judge, input: pairs, model: base, labels: soft, ties: keep}}
  rl: {{op: dpo, input: judged, model: sl, lora: {{rank: 4}}, max_length: 256, max_steps: 2}}
  preference_model: {{op: reward, input: judged, model: sl, lora: {{rank: 4}}, max_length: 256, max_steps: 2}}
  scores: {{op: evaluate, models: [base, rl], inputs: {{harmful: prompts}}, sampling: {{max_tokens: 24}}}}
"""


@pytest.mark.vllm
@pytest.mark.parametrize("style", ["chat", "transcript"])
def test_every_operator_takes_real_text_and_both_engines_answer_alike(home: Path, tmp_path: Path, style: str) -> None:
    runs = {}
    for engine in ("transformers", "vllm"):
        spec, out = tmp_path / f"{engine}.yaml", tmp_path / engine
        spec.write_text(CHAIN.format(engine=engine, format=style))
        assert start(spec, out, home).wait(timeout=1500) == 0, (out / "console.txt").read_text()
        runs[engine] = rows_by_step(out)
        status = {name: step["status"] for name, step in json.loads((out / "run.json").read_text())["steps"].items()}
        assert set(status.values()) <= {"done", "cached"}, status
    for rows in runs.values():
        assert [len(rows[step]) for step in ("answers", "critique", "revision", "judged")] == [8] * 4
        assert all(0 <= row["p_chosen"] <= 1 for row in rows["judged"])
    greedy = [[row["response"] for row in rows["answers"]] for rows in runs.values()]
    assert all(text.strip() for texts in greedy for text in texts)
    assert sum(one != other for one, other in zip(*greedy, strict=True)) <= 1  # a tie of two tokens may fall either way


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_training_goes_as_bare_trl_does(home: Path, tmp_path: Path, kind: str) -> None:
    make_data(tmp_path, 16)
    source = resolve_model("base", ModelEntry(source="smollm2"), Path(), store=Store(home))
    unpack(source)
    model = shutil.copytree(source.path, tmp_path / "model")
    nothing_follows_a_last_turn(model / "chat_template.jinja")
    losses = {side: train(kind, tmp_path, tmp_path / side, model=model) for side, train in SIDES.items()}
    assert len(losses["ours"]) == len(losses["theirs"]) == 2
    assert losses["ours"][0] == pytest.approx(losses["theirs"][0], abs=1e-4)  # later ones depend on the adapters' random start


def nothing_follows_a_last_turn(template: Path) -> None:
    """Lay conversations out without a line break at their end, which TRL learns; caiflow's turns end at their token."""
    old = template.read_text()
    new = old.replace("'<|im_end|>' + '\n'}}", "'<|im_end|>' }}{% if not loop.last %}{{ '\n' }}{% endif %}")
    new = new.replace("{{ '<|im_start|>assistant", "{{ '\n<|im_start|>assistant")
    assert new.count("not loop.last") == new.count("'\n<|im_start|>assistant") == 1
    template.write_text(new)


@pytest.mark.kill
def test_a_kill_in_every_phase_loses_nothing_and_pays_for_nothing_twice(home: Path, tmp_path: Path) -> None:
    out, options, killed = tmp_path / "run", ("--sample", "6", "--set", "steps.clean.require=null"), set[str]()
    while True:
        before = set(ledger_records(home))
        driver = start(RECIPE, out, home, *options)
        while driver.poll() is None and not (phase := under_way(out) - killed):
            time.sleep(0.02)
        if driver.poll() is not None:
            break
        driver.kill()
        driver.wait(timeout=60)
        killed |= phase
        assert before <= set(ledger_records(home))
    assert driver.returncode == 0, (out / "console.txt").read_text()
    assert killed == set(PHASES)
    records = list(ledger_records(home))
    assert len(records) == len(set(records))
    assert {step["status"] for step in json.loads((out / "run.json").read_text())["steps"].values()} <= {"done", "cached"}


def under_way(out: Path) -> set[str]:
    """Return the steps with a model that have begun, told of themselves, and aren't done."""
    told = Counter(event.get("step") for event in read_events(out) if event["event"] in ("step_progress", "sample"))
    done = {event["step"] for event in read_events(out) if event["event"] == "step_done"}
    return {step for step in PHASES if told[step] >= 3} - done
