"""The commonest slips in a spec, and what they are answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.errors import SpecError
from caiflow.engine.spec.load import load_spec
from caiflow.engine.spec.schema import spec_schema
from caiflow.engine.spec.slips import ELSEWHERE, meant

SPEC = """
caiflow: 1
models: {base: {source: tiny, %(model)s}}
steps:
  data: {op: load, source: "tiny:red_team_train.jsonl", format: hh, %(load)s}
  ask: {op: generate, input: data, model: base, %(generate)s}
  tuned: {op: sft, input: ask, model: base, %(sft)s}
  mixed: {op: mix, %(mix)s}
  scores: {op: evaluate, models: [base], inputs: {a: data}, %(evaluate)s}
  measured: {op: evaluate, models: [base], %(measured)s}
"""
SLIPS = {
    "generate": {
        "temperature: 0.7": "sampling: {temperature: 0.7}",
        "top_p: 0.9": "sampling: {top_p: 0.9}",
        "max_new_tokens: 64": "sampling: {max_tokens: 64}",
        "stop_sequences: [x]": 'sampling: {stop: ["x"]}',
        'sampling: {stop: "\\n"}': '["\\n"]',
        "sampling: {stop: END}": "[END]",
        "num_return_sequences: 4": "samples: 4",
    },
    "sft": {
        "epochs: 3": "num_train_epochs: 3",
        "lr: 0.001": "learning_rate: 0.001",
        "batch_size: 8": "per_device_train_batch_size: 8",
        "lora_r: 16": "lora: {rank: 16}",
        "r: 8": "lora: {rank: 8}",
        "lora_alpha: 32": "lora: {alpha: 32}",
        "lora: {r: 16}": "rank: 16",
        "lora: {target_modules: all-linear}": 'targets: "all-linear"',
        "max_seq_length: 512": "max_length: 512",
        "warmup_ratio: 0.1": "warmup_steps: 0.1",
        "gpus: 2": "resources: {num_gpus: 2}",
        "lora: true": "{}",
    },
    "load": {"num_rows: 5": "limit: 5", "data_dir: a": 'folder: "a"'},
    "mix": {"inputs: [ask]": "{ask: 1}", "inputs: {ask: all}": "{rows: all}"},
    "model": {"api_base: 'http://127.0.0.1/v1'": 'base_url: "http://127.0.0.1/v1"'},
    "evaluate": {'checks: {mine: "sorry"}': '{pattern: "sorry"}'},
    "measured": {"inputs: [data]": "{NAME: data}"},
}


@pytest.mark.parametrize(("place", "written", "meant_"), [(p, w, m) for p, slips in SLIPS.items() for w, m in slips.items()])
def test_a_slip_is_answered_with_what_to_write(place: str, written: str, meant_: str) -> None:
    fields = {**dict.fromkeys(SLIPS, "description: ''"), "model": "revision: null", "mix": "inputs: {ask: 1}"}
    with pytest.raises(SpecError) as refused:
        load_spec(Path("slips.yaml"), text=SPEC % {**fields, place: written})
    assert f"write `{meant_}`" in str(refused.value)


def test_a_switch_is_not_taken_for_the_group_of_another_library() -> None:
    with pytest.raises(SpecError) as refused:
        load_spec(Path("slips.yaml"), text=SPEC % {**dict.fromkeys(SLIPS, "description: ''"), "sft": "fp16: true"})
    assert "unknown key `fp16`; did you mean `bf16`?" in str(refused.value)


def test_every_key_of_another_tool_leads_somewhere() -> None:
    definitions = spec_schema()["$defs"]
    known = [group for group in definitions.values() if "properties" in group]
    lost = [key for key in ELSEWHERE if not any(meant(key, group, definitions) for group in known)]
    assert lost == []
