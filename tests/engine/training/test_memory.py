"""The memory that a training is said to need: by hand, by what must hold of any, and against what trainings take here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caiflow.engine.llm.gguf import unpack
from caiflow.engine.llm.model_files import PACKAGED, Shape, bundled_folder, packaged_file
from caiflow.engine.plan.model_identity import resolve_model
from caiflow.engine.spec.grammar import ModelEntry
from caiflow.engine.store.artifacts import Store
from caiflow.engine.training.memory import Beside, Load, Need, Setting, need
from caiflow.engine.training.params import Lora, TrainingParams
from caiflow.engine.training.scratch import Scratch
from support.memory_peaks import peak
from support.small_models import small_model

SEVEN = Shape(hidden=4096, layers=32, queries=4096, keys=1024, inner=14336, vocabulary=32000, stored_bytes=2)
"""Mistral 7B's sizes."""
GPU, CPU = Setting(gpu=True), Setting(gpu=False)


def params(**fields: Any) -> TrainingParams:
    return TrainingParams.model_validate({"input": "rows", "per_device_train_batch_size": 1, **fields})


def needed(shape: Shape = SEVEN, setting: Setting = GPU, load: Load = Load(1, 512), beside: str = "", **fields: Any) -> Need:
    others: Any = [(shape, Beside("other", beside))] if beside else []  # type: ignore[arg-type]
    return need(shape, params(**fields), load, others, setting)


def test_seven_billion_weights_in_full_by_hand() -> None:
    """7.24 billion weights: 4 bytes each for weight and gradient, 8 for Adam's two states."""
    assert SEVEN.weights == 7_241_732_096
    found = needed()
    assert (found.weights, found.gradients, found.optimizer) == (28_966_928_384, 28_966_928_384, 57_933_856_768)
    assert found.peak > 116e9


def test_a_reference_in_full_is_one_more_copy_of_the_weights() -> None:
    assert needed(beside="alike").peak - needed().peak == 4 * SEVEN.weights
    assert needed(beside="stored").peak - needed().peak == 2 * SEVEN.weights


def test_adapters_train_their_own_weights_alone() -> None:
    """Each of seven layers in 32 blocks has rank times (inputs + outputs) weights."""
    found = needed(lora=Lora(rank=16))
    each = 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert found.gradients == 32 * each * 4
    assert found.weights == 2 * SEVEN.weights + found.gradients
    only_two = needed(lora=Lora(rank=16, targets=("q_proj", "v_proj")))
    assert only_two.gradients == 32 * 16 * (4096 + 4096 + 4096 + 1024) * 4
    assert needed(lora=Lora(rank=16, targets=r".*\.(q|v)_proj")).gradients == only_two.gradients


EIGHT: dict[str, Any] = {"fsdp": True, "resources": {"workers": 8}}


def test_a_divided_model_is_an_eighth_on_each_of_eight_gpus_with_two_blocks_whole_by_hand() -> None:
    """A block has 4096 x (2 x 4096 + 2 x 1024 + 3 x 14336) weights; two of them with gradients, and the head, in 2 bytes."""
    found, block = needed(**EIGHT), 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    share = SEVEN.weights // 8
    assert (found.gradients, found.optimizer) == (4 * share, 8 * share)
    assert found.weights == 4 * SEVEN.weights // 8 + 2 * (4 * block + 32000 * 4096)
    kept_whole = needed(**EIGHT, fsdp_config={"reshard_after_forward": False}).weights
    assert kept_whole == 4 * SEVEN.weights // 8 + 2 * (SEVEN.weights + 2 * block)


def test_what_each_stage_of_deepspeed_divides_by_hand() -> None:
    """In bfloat16: 2 bytes for weight and gradient, 12 for its float32 and Adam's states, a buffer of 5e8 gradients."""

    def stage(number: int, **more: Any) -> Need:
        return needed(deepspeed={"zero_optimization": {"stage": number, **more}}, resources={"workers": 8})

    whole, share = 2 * SEVEN.weights, SEVEN.weights // 8
    assert stage(1)[:3] == (whole, whole, 12 * share)
    assert stage(2)[:3] == (whole, 2 * share, 12 * share)
    assert stage(3)[:3] == (whole // 8 + 2 * 10**9, 2 * share, 12 * share)
    assert stage(3, stage3_max_live_parameters=10**8).weights == whole // 8 + 2 * 10**8
    assert stage(2, overlap_comm=True).peak - stage(2).peak == 2 * 5 * 10**8
    assert stage(3, offload_param={}, offload_optimizer={})[:3] == (2 * 10**9, 2 * share, 0)


def test_a_divided_reference_is_whole_while_it_reads() -> None:
    assert needed(**EIGHT, beside="alike").beside == 4 * SEVEN.weights // 8 + 2 * SEVEN.weights
    assert needed(**EIGHT, beside="stored").beside == 2 * SEVEN.weights


@pytest.mark.parametrize(
    ("optim", "each", "of_embeddings"),
    [
        ("adamw_torch", 8.0, 8.0),
        ("adamw_8bit", 2.0, 8.0),
        ("paged_adamw_32bit", 0.0, 0.0),
        ("paged_adamw_8bit", 0.0, 0.0),
        ("sgd", 0.0, 0.0),
        ("lion_8bit", 1.0, 4.0),
        ("ademamix", 12.0, 12.0),
        ("rmsprop_bnb", 4.0, 4.0),
    ],
)
def test_states_of_optimizers(optim: str, each: float, of_embeddings: float) -> None:
    """The token embedding's states are never rounded; paged ones leave a GPU, not a CPU's memory."""
    embedding = 32000 * 4096
    assert needed(optim=optim).optimizer == each * (SEVEN.weights - embedding) + of_embeddings * embedding
    plain = optim.removeprefix("paged_")
    assert needed(setting=CPU, optim=optim).optimizer == needed(optim=plain).optimizer


def test_weights_in_bfloat16_have_states_in_it_unless_the_optimizer_keeps_its_own() -> None:
    halved = Setting(gpu=True, dtype="bfloat16")
    assert needed(setting=halved).weights == 2 * SEVEN.weights
    assert needed(setting=halved).optimizer == 4 * SEVEN.weights
    assert needed(setting=halved, optim="rmsprop_bnb_32bit").optimizer == 4 * SEVEN.weights
    assert needed(setting=halved, optim="ademamix").optimizer == 6 * SEVEN.weights


SHAPES = st.builds(
    lambda heads, groups, width, layers, inner, vocabulary, tied: Shape(
        heads * groups * width, layers, heads * groups * width, heads * width, inner, vocabulary, tied
    ),
    *(st.integers(1, 8), st.integers(1, 4), st.sampled_from([16, 64, 128]), st.integers(2, 40), st.integers(64, 20000)),
    *(st.integers(300, 200_000), st.booleans()),
)
LOADS = st.builds(Load, st.integers(1, 32), st.integers(2, 8192))


@given(SHAPES, LOADS, st.booleans())
def test_what_takes_less_is_never_said_to_take_more(shape: Shape, load: Load, gpu: bool) -> None:
    setting = Setting(gpu)
    full, more = (need(shape, params(), one, [], setting).peak for one in (load, load._replace(sequences=2 * load.sequences)))
    assert full <= more
    assert need(shape, params(gradient_checkpointing=True), load, [], setting).peak <= full
    eight, plain = (need(shape, params(optim=name), load, [], setting).peak for name in ("adamw_8bit", "adamw_torch"))
    assert eight <= plain
    small, large = (need(shape, params(lora=Lora(rank=rank)), load, [], setting).peak for rank in (4, 8))
    assert small <= large
    rounded = need(shape, params(lora=Lora(rank=8, quantization="4bit")), load, [], setting)
    assert rounded.peak <= large
    assert all(part >= 0 for part in rounded)
    divided, wider = (
        need(shape, params(fsdp=True, resources={"workers": workers}), load, [], setting).peak for workers in (2, 16)
    )
    assert wider <= divided
    assert need(shape, params(), load, [(shape, Beside("m", "stored"))], setting).peak > full


MIDDLE = Scratch(
    hidden_size=512, num_hidden_layers=10, num_attention_heads=8, num_key_value_heads=4, intermediate_size=1376,
    tokenizer={"vocab_size": 400},
)  # fmt: skip
"""29 million weights."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the bundled model, of a random one of 29 million weights, and of the real one where it is here."""
    folder = tmp_path_factory.mktemp("models")
    small_model(folder / "middle", shape=MIDDLE)
    found = {"tiny": bundled_folder("tiny"), "middle": folder / "middle"}
    if packaged_file("smollm2"):
        source = resolve_model("base", ModelEntry(source="smollm2"), Path(), store=Store(folder / "home"))
        unpack(source)
        found["smollm2"] = Path(source.path)
    return found


SIZES = {"tiny": (16, 512), "middle": (4, 256), "smollm2": (1, 256)}
"""Rows and tokens of a batch, by model."""


KINDS_AND_WAYS = [(kind, way) for kind in ("sft", "dpo", "reward") for way in ("full", "lora")]
ON_TINY = {("sft", "lora"), ("dpo", "full"), ("reward", "full")}
ALWAYS = {("sft", "lora"), ("dpo", "full"), ("reward", "lora")}
MEASURED = [
    pytest.param(name, *how, marks=[] if name != "smollm2" and how in ALWAYS else [pytest.mark.campaign])
    for how in KINDS_AND_WAYS
    for name in ("tiny" if how in ON_TINY else "middle", "smollm2")
]
"""Each kind of training in each way on one of the small models, and on the real one; a measurement takes half a minute."""


LINUX = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which tells a process's highest memory"
)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(3600)
@LINUX
@pytest.mark.parametrize(("name", "kind", "way"), MEASURED)
def test_a_training_takes_what_is_said(name: str, kind: str, way: str, models: dict[str, Path]) -> None:
    if name not in models:
        pytest.skip(f"needs the model {name}: {PACKAGED[name].command}")
    batch, length = SIZES[name]
    found = peak(kind, models[name], way, max(1, batch // 2) if kind != "sft" else batch, length)
    assert found["planned"] == pytest.approx(found["measured"], rel=0.2), found


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1200)
@LINUX
@pytest.mark.parametrize(
    ("name", "kind", "way"),
    [
        ("tiny", "grpo", "full"),
        pytest.param("middle", "grpo", "full", marks=pytest.mark.campaign),
        pytest.param("middle", "grpo", "lora", marks=pytest.mark.campaign),
        ("middle", "ppo", "full"),
    ],
)
def test_replies_take_what_is_said(name: str, kind: str, way: str, models: dict[str, Path]) -> None:
    found = peak(kind, models[name], way, SIZES[name][0], 160)
    assert found["planned"] == pytest.approx(found["measured"], rel=0.2), found
