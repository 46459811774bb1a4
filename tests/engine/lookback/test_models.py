"""`caiflow merge`: held against peft's own sum of model and adapter, and against what can't be merged."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from caiflow.engine.commands.parser import SHAPES
from caiflow.engine.commands.shapes.every import OUTPUTS
from caiflow.engine.store.artifacts import Store
from support.commands import command_here
from support.models_of_runs import TINY, finished_run, tiny_adapter, tiny_model

SPEC = """\
caiflow: 1
name: cai
models: {base: {source: tiny}}
steps:
  red: {op: load, source: "tiny:helpful_test.jsonl"}
  whole: {op: sft, input: red, model: base}
  kept: {op: sft, input: red, model: base, lora: {rank: 4}, merge: false}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run: `whole` made the tiny model, and `kept` an adapter over it that changes much."""
    folder = tmp_path_factory.mktemp("place")
    made = {"whole": ("model", tiny_model), "kept": ("model", partial(tiny_adapter, alpha=64, layers=["q_proj"]))}
    finished_run(folder / "run", Store(folder / "home"), SPEC, made)
    return folder


def test_a_merged_model_is_pefts_own_sum_and_needs_no_peft(place: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = command_here(place, "merge", "run", "kept", "merged", "--json", CAIFLOW_HOME=str(place / "home"))
    assert done.returncode == 0, done.stderr
    OUTPUTS["merge"].model_validate_json(done.stdout)
    said = json.loads(done.stdout)
    assert said["shape"] == f"merge/{SHAPES['merge']}"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(said["files"])
    assert "adapter_config.json" not in said["files"]
    words = AutoTokenizer.from_pretrained(place / "merged")("How do I water the roses?", return_tensors="pt")
    plain = AutoModelForCausalLM.from_pretrained(TINY)
    merged = AutoModelForCausalLM.from_pretrained(place / "merged")
    with torch.no_grad():
        before = plain(**words).logits
        summed = PeftModel.from_pretrained(plain, str((place / "run" / "steps" / "kept").resolve()))(**words).logits
        found = merged(**words).logits
    assert torch.allclose(found, summed, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-1)


@pytest.mark.parametrize(
    ("step", "folder", "said"),
    [
        ("whole", "new", "whole: it has no adapter, it is whole as it is"),
        ("base", "new", "base: it has no adapter"),
        ("kpt", "new", "no model 'kpt' in this run; did you mean `kept`?"),
        ("kept", ".", ".: not empty; name a new folder"),
    ],
)
def test_what_cannot_be_merged_is_said(place: Path, step: str, folder: str, said: str) -> None:
    done = command_here(place, "merge", "run", step, folder, CAIFLOW_HOME=str(place / "home"))
    assert done.returncode == 1
    assert said in done.stderr
    assert not (place / "new").exists()
