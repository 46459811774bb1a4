"""What `plan` says of the memory of trainings: of every recipe at full size, of models that aren't here, and what would fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.commands.tables import memory_notes
from caiflow.engine.errors import WrongValue
from caiflow.engine.plan.memory import Devices, StepMemory, devices_here, memory_of, parse_devices
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from support.commands import command_here

ROOT = Path(__file__).parents[3]
FULL = sorted(path for path in (ROOT / "specs").glob("*.yaml") if "\n  full:\n" in path.read_text())
_MISTRAL = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
_QWEN = {
    **_MISTRAL,
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
}
PUBLISHED = {
    "mistralai/Mistral-7B-v0.1": _MISTRAL,
    "mistralai/Mistral-7B-Instruct-v0.1": _MISTRAL,
    "mistralai/Mistral-7B-Instruct-v0.3": {**_MISTRAL, "vocab_size": 32768},
    "Qwen/Qwen2.5-7B": _QWEN,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN,
}
"""The settings of the recipes' models as their makers publish them: no weights are needed to plan."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the settings alone where the hub's client keeps what it fetched."""
    for repo, settings in PUBLISHED.items():
        root = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        snapshot = root / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("a" * 40)
        (snapshot / "config.json").write_text(json.dumps(settings))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def needs(path: Path, tmp_path: Path, devices: Devices, **changes: Any) -> dict[str, StepMemory]:
    spec = load_spec(path, **changes)
    return {one.step: one for one in memory_of(spec, Store(tmp_path / "home"), devices)}


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
@pytest.mark.usefixtures("cache")
def test_every_recipe_at_full_size_says_whether_it_fits_eight_gpus_of_80_gb(path: Path, tmp_path: Path) -> None:
    found = needs(path, tmp_path, parse_devices("8x80GB"), profile="full")
    assert found, "a full profile trains something"
    for step in found.values():
        assert step.need is not None, step
        assert step.fits is (step.need.peak <= 76e9)
        assert bool(step.would_fit) or step.fits or step.need.peak > 200e9, step


@pytest.mark.usefixtures("cache")
def test_what_does_not_fit_says_what_would(tmp_path: Path) -> None:
    whole = {"profile": "full", "sets": ["steps.sl_cai.fsdp=false"]}
    found = needs(ROOT / "specs" / "autoalign_style.yaml", tmp_path, parse_devices("8x80GB"), **whole)["sl_cai"]
    assert found.need is not None
    assert found.need.weights + found.need.gradients + found.need.optimizer == pytest.approx(16 * 7.24e9, rel=0.001)
    assert found.fits is False
    assert any("lora" in change for change in found.would_fit)
    said = "\n".join(note.plain for note in memory_notes([found.to_json()]))
    assert "does not fit: sl_cai needs" in said
    assert "got 8 GPUs of 80.0 GB" in said
    assert "what would: " in said
    assert any(change.startswith("fsdp: true (") for change in found.would_fit)


@pytest.mark.usefixtures("cache")
def test_a_division_is_no_way_for_who_can_t_divide(tmp_path: Path) -> None:
    found = needs(ROOT / "specs" / "paper.yaml", tmp_path, parse_devices("8x80GB"), profile="full")
    assert not any("fsdp" in change for change in found["rl_cai"].would_fit)
    alone = {"profile": "full", "sets": ["steps.sl_cai.fsdp=false", "steps.sl_cai.resources.workers=1"]}
    changed = needs(ROOT / "specs" / "paper.yaml", tmp_path, parse_devices("8x80GB"), **alone)["sl_cai"].would_fit
    assert any(change.startswith("fsdp: true, resources: {workers: 8} (") for change in changed)


SPEC = """
caiflow: 1
models:
  here: {source: tiny}
  there: {source: nobody/nothing-of-this-name}
steps:
  rows: {op: load, source: rows.jsonl}
  small: {op: sft, input: rows, model: here}
  smaller: {op: sft, input: rows, model: small, per_device_train_batch_size: 1}
  unknown: {op: sft, input: rows, model: there}
  fresh: {op: sft, input: rows, scratch: {hidden_size: 64}}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi?", "response": "Hello."}\n{"prompt": "So?", "response": "Yes."}\n')
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path / "spec.yaml"


def test_a_trained_model_has_the_sizes_of_the_one_it_came_from(spec: Path, tmp_path: Path) -> None:
    found = needs(spec, tmp_path, devices_here())
    small, smaller, fresh, unknown = (found[name] for name in ("small", "smaller", "fresh", "unknown"))
    assert small.need is not None
    assert smaller.need is not None
    assert fresh.need is not None
    assert small.need.weights == smaller.need.weights
    assert small.need.activations > smaller.need.activations
    assert fresh.need.weights < small.need.weights
    assert (small.fits, smaller.fits) == (True, True)
    assert (unknown.need, unknown.fits) == (None, None)
    assert "aren't on this machine" in unknown.unchecked


def test_workers_share_main_memory_and_gpus_have_theirs(spec: Path, tmp_path: Path) -> None:
    needed = needs(spec, tmp_path, Devices(1, 10**12, gpu=False))["small"].need
    assert needed is not None
    main = Devices(1, int(needed.peak * 1.5), gpu=False)
    assert needs(spec, tmp_path, main)["small"].fits
    assert not needs(spec, tmp_path, main, sets=["steps.small.resources.workers=2"])["small"].fits


@pytest.mark.parametrize("text", ["", "8", "80GB", "0x80GB", "8x80", "8 x 80GB", "ax80GB", "-1x80GB"])
def test_what_means_no_gpus_is_refused_with_how_to_say_it(text: str) -> None:
    with pytest.raises(WrongValue, match="8x80GB"):
        parse_devices(text)


def test_the_command_says_it_for_the_gpus_named(spec: Path, tmp_path: Path) -> None:
    text = spec.read_text().replace("  unknown: {op: sft, input: rows, model: there}\n", "")
    spec.write_text(text.replace("  there: {source: nobody/nothing-of-this-name}\n", ""))
    home = {"CAIFLOW_HOME": str(tmp_path / "home")}
    said = json.loads(command_here(tmp_path, "plan", "spec.yaml", "--json", "--gpus", "2x1GB", **home).stdout)["memory"]
    assert [step["step"] for step in said] == ["small", "smaller", "fresh"]
    assert said[0]["devices"] == {"number": 2, "size_bytes": 10**9, "gpu": True}
    shown = command_here(tmp_path, "plan", "spec.yaml", "--gpus", "2x0.1GB", **home).stdout
    assert "does not fit" in shown
    refused = command_here(tmp_path, "plan", "spec.yaml", "--gpus", "2", **home)
    assert refused.returncode != 0
    assert "write how many, and the memory of each: 8x80GB" in refused.stdout + refused.stderr
