"""The memory that a training needs of each device, from the model's sizes and the step's parameters alone.

Owns the formula. Loads nothing and asks no device. What each term is and how far it is from what was measured is in
docs/ideas/memory.md. Sources: Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054), section 3, for the bytes of a weight, its
gradient and Adam's states; Korthikanti et al. 2022 (arXiv 2205.05198), section 4, for the way of counting what a block keeps
for its backward pass; Dettmers et al. 2022 and 2023 (arXiv 2110.02861, 2305.14314) for states and weights in fewer bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from caiflow.engine.llm.model_files import Linear, Shape
from caiflow.engine.training.checks import ALL, fitting
from caiflow.engine.training.params import Lora, TrainingParams, adapts_head

FLOAT = 4
HALF = 2
BYTES_OF = {"4bit": 0.516, "8bit": 1.002}
"""Bytes of a rounded weight with its scales, of which 4 bits round a second time."""
STATES = {"sgd": 0.0, "adafactor": 0.02, "adagrad": 4.0, "rmsprop": 4.0, "lion": 4.0, "ademamix": 12.0}
"""Bytes of an optimizer's states for each trained weight, by how its name begins; Adam's, 8, for any other."""
TILE = (4096, 32768)
"""Tokens and entries of the vocabulary whose logits TRL's output head holds at once."""
TILE_COPIES = 8
"""Copies of those logits that its backward pass makes where there is no Triton, as on a CPU."""
BUCKET, LIVE = 500_000_000, 1_000_000_000
"""Numbers whose gradients DeepSpeed exchanges at once, and those that it keeps whole, where a spec names no others."""


class Load(NamedTuple):
    """What goes through a model at once: so many sequences of so many tokens."""

    sequences: int
    tokens: int
    head: bool = True
    """Whether its output head reads them; a reward model has none."""
    drawn: int = 0
    """Sequences that are drawn by the model at once."""


class Beside(NamedTuple):
    """A model that is only read, and how it is held: as the trained one's weights are, as stored, or in float32."""

    model: str
    held: Literal["alike", "stored", "float32"]


class Need(NamedTuple):
    """The bytes that a training needs of each device; `peak` is less than all together, since not all are there at once."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    beside: int
    peak: int


class Setting(NamedTuple):
    """Where a model is trained: on GPUs or a CPU, and what its entry says of its number format."""

    gpu: bool
    dtype: str = "auto"


def need(shape: Shape, params: TrainingParams, load: Load, beside: Iterable[tuple[Shape, Beside]], setting: Setting) -> Need:
    """Return the memory that training a model of this shape takes."""
    setting = _as_divided(params, setting)
    trained = trained_weights(shape, params.lora, head=load.head)
    weights = (held_bytes(shape, params, setting, head=load.head) + (trained * FLOAT if params.lora else 0)) // _over(params, 3)
    weights = (0 if _offloads(params, "param", setting) else weights) + gathered(shape, params, setting)
    each = FLOAT if params.lora else _trained_bytes(setting)
    gradients = trained // _over(params, 2) * each
    stepped = trained // _over(params, 1)
    optimizer = 0 if _offloads(params, "optimizer", setting) else _optimizer_bytes(shape, params, stepped, each, setting)
    activations = kept(shape, params, load, setting) + head_bytes(shape, params, load, setting)
    read = sum(_beside(other, how, params, setting) for other, how in beside)
    copies = _autocast_copies(shape, params, setting)
    at_once = gradients if params.gradient_accumulation_steps > 1 else 0
    buckets = _buckets(shape, params, trained, setting) * each
    phases = (
        copies + optimizer + at_once + buckets + activations,
        optimizer + gradients + buckets + _step_copies(shape, params, stepped, each, setting),
        optimizer + copies + drawn_bytes(shape, load),
        _checked(shape, params, load, setting),
    )
    return Need(weights, gradients, optimizer, activations, read, weights + read + max(phases))


def _as_divided(params: TrainingParams, setting: Setting) -> Setting:
    """Return in what digits a divided model is held: FSDP2 widens its weights, DeepSpeed holds all in what it computes in."""
    if params.deepspeed:
        return setting._replace(dtype="bfloat16" if _computed_bytes(params, setting) == HALF else "float32")
    return setting._replace(dtype="auto") if params.fsdp and params.lora is None else setting


def _over(params: TrainingParams, stage: int) -> int:
    """Return among how many devices that is divided which is so from this stage on."""
    return params.resources.workers if params.stage >= stage else 1


def _offloads(params: TrainingParams, what: Literal["param", "optimizer"], setting: Setting) -> bool:
    """Say whether DeepSpeed keeps something in main memory, beside a GPU's own."""
    if params.deepspeed is None or not setting.gpu:
        return False
    zero = params.deepspeed.zero_optimization
    return (zero.offload_param if what == "param" else zero.offload_optimizer).device == "cpu"


def _optimizer_bytes(shape: Shape, params: TrainingParams, stepped: int, each: int, setting: Setting) -> int:
    """Return the bytes of the optimizer's states; DeepSpeed's have the weights themselves in float32.

    Of rounded states those of the token embedding stay whole, as transformers has them.
    """
    states = state_bytes(params.optim, FLOAT if params.deepspeed else each, gpu=setting.gpu)
    whole = 0 if params.lora or "8bit" not in params.optim else shape.embedding // _over(params, 1)
    return int(stepped * (states + FLOAT * bool(params.deepspeed)) + whole * 3 * states)


def _buckets(shape: Shape, params: TrainingParams, trained: int, setting: Setting) -> int:
    """Return the numbers of copies in which gradients are exchanged: all, or the one or two buffers that DeepSpeed fills."""
    if params.resources.workers == 1 or params.fsdp:
        return 0
    if params.deepspeed is None:
        return trained
    zero = params.deepspeed.zero_optimization
    size = shape.hidden**2 if zero.reduce_bucket_size == "auto" else zero.reduce_bucket_size or BUCKET
    overlap = zero.stage == 3 if zero.overlap_comm is None else zero.overlap_comm
    return (1 + overlap) * (size if setting.gpu else min(size, trained))  # a processor's memory is taken when it is written to


def gathered(shape: Shape, params: TrainingParams, setting: Setting) -> int:
    """Return the bytes of divided weights where they are whole: two blocks with their gradients and the head, or all.

    DeepSpeed keeps as many whole as it is allowed to.
    """
    if params.stage < 3:
        return 0
    block = shape.in_blocks // shape.layers
    if params.deepspeed:
        most = params.deepspeed.zero_optimization.stage3_max_live_parameters or LIVE
        return min(shape.weights, most) * _computed_bytes(params, setting)
    count = 4 * block + shape.embedding if params.fsdp_config.reshard_after_forward else shape.weights + 2 * block
    return count * _computed_bytes(params, setting)


def _trained_bytes(setting: Setting) -> int:
    return HALF if setting.dtype == "bfloat16" else FLOAT


def _computed_bytes(params: TrainingParams, setting: Setting) -> int:
    """Return the bytes of what linear layers read and write."""
    in_half = params.bf16 if params.bf16 is not None else setting.gpu
    return HALF if in_half or setting.dtype in ("bfloat16", "float16") else FLOAT


def _frozen_bytes(shape: Shape, setting: Setting) -> int:
    """Return the bytes of a weight under adapters that isn't rounded."""
    if setting.dtype != "auto":
        return FLOAT if setting.dtype == "float32" else HALF
    return shape.stored_bytes if setting.gpu else FLOAT


def held_bytes(shape: Shape, params: TrainingParams, setting: Setting, *, head: bool = True) -> int:
    """Return the bytes of the weights as they are held for training."""
    count = shape.weights - (shape.embedding if not head and not shape.tied else 0)
    if params.lora is None:
        return count * _trained_bytes(setting)
    each = _frozen_bytes(shape, setting)
    if params.lora.quantization is None:
        return count * each
    return int(shape.in_blocks * BYTES_OF[params.lora.quantization]) + (count - shape.in_blocks) * each


def trained_weights(shape: Shape, lora: Lora | None, *, head: bool = True) -> int:
    """Return the number of weights that learn."""
    if lora is None:
        return shape.weights - (shape.embedding if not head and not shape.tied else 0)
    return shape.layers * sum(one.copies * lora.rank * (one.inputs + one.outputs) for one in _adapted(shape, lora))


def _adapted(shape: Shape, lora: Lora) -> list[Linear]:
    """Return the layers of a block that get an adapter; experts, which are one weight in the libraries, get none."""
    wanted, found = lora.targets, []
    for name, linear in shape.linears.items():
        block = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        if isinstance(wanted, str):
            taken = wanted == ALL or bool(fitting(wanted, [f"model.layers.0.{block}.{name}"]))
        else:
            taken = any(part.rpartition(".")[2] == name for part in wanted)
        found += [linear] if taken and linear.copies == 1 else []
    return found


def state_bytes(optim: str, each: int, *, gpu: bool) -> float:
    """Return the bytes of an optimizer's states for a weight of `each` bytes; paged ones can leave a GPU, and count 0 there."""
    if optim.startswith("paged") and gpu:
        return 0.0
    states = next((value for name, value in STATES.items() if optim.removeprefix("paged_").startswith(name)), 8.0)
    if "8bit" in optim:
        return states / 4
    return states if "bnb" in optim or "32bit" in optim else states * each / FLOAT


def kept(shape: Shape, params: TrainingParams, load: Load, setting: Setting) -> int:
    """Return the bytes that the blocks keep for the backward pass, with the gradients that flow through one of them.

    Of each token a block keeps what both norms read and, where they learn, what they made (float32 or as the stream is), what
    linear layers read, queries, keys, values and what attention made of them, and four times the width inside the feed-forward
    network: gate, its activation, the other half, and their product.
    """
    half = _computed_bytes(params, setting)
    stream = FLOAT if params.lora is None or half == FLOAT else half
    inner = shape.inner * shape.experts_used
    block = 2 * shape.hidden * FLOAT + 2 * shape.hidden * half + 4 * inner * half
    block += 2 * (shape.queries + shape.keys) * half
    if params.lora is None or half != FLOAT:
        block += 2 * shape.hidden * stream
    if params.lora is not None:
        block += len(_adapted(shape, params.lora)) * params.lora.rank * FLOAT
    tokens = load.sequences * load.tokens
    flowing = 3 * inner * half
    if params.gradient_checkpointing:
        return tokens * (shape.layers * shape.hidden * stream + block + flowing)
    return tokens * (shape.layers * block + flowing)


def head_bytes(shape: Shape, params: TrainingParams, load: Load, setting: Setting) -> int:
    """Return what the output head needs: a tile of logits with its copies, and the gradients of what it reads and of itself."""
    if not load.head:
        return 0
    tokens = load.sequences * load.tokens
    rows = min(tokens, TILE[0])
    if setting.gpu:
        tile = rows * TILE[1] * _computed_bytes(params, setting)
    else:
        tile = TILE_COPIES * rows * min(shape.vocabulary, TILE[1]) * FLOAT
    gradient = shape.embedding * FLOAT if params.lora is None else 0
    if params.lora is not None and adapts_head(params.lora):
        gradient = 3 * shape.embedding * FLOAT  # the weight as the adapter makes it, what the adapter adds, and its gradient
    return tile + gradient + tokens * shape.hidden * FLOAT


def _autocast_copies(shape: Shape, params: TrainingParams, setting: Setting) -> int:
    """Return what computing float32 weights in bfloat16 takes beside them: a copy of each that learns."""
    in_half = _computed_bytes(params, setting) == HALF and _trained_bytes(setting) == FLOAT
    return shape.in_blocks * HALF if in_half and params.lora is None and not params.fsdp else 0


def _step_copies(shape: Shape, params: TrainingParams, trained: int, each: int, setting: Setting) -> int:
    """Return what the optimizer's step takes: on a GPU all weights once more (`foreach`), elsewhere the largest one twice.

    DeepSpeed has the gradients of its own weights in float32.
    """
    if params.deepspeed:
        return trained * FLOAT
    if setting.gpu:
        return trained * each if params.optim in ("adamw_torch", "adagrad", "rmsprop", "sgd") else 0
    return 2 * each * (shape.embedding if params.lora is None else 0)


def _checked(shape: Shape, params: TrainingParams, load: Load, setting: Setting) -> int:
    """Return what holding the saved model to the trained one takes: logits three times, and off GPUs the saved model too.

    A model that was divided is put together on a GPU only where that has room.
    """
    if params.division:
        return 0
    each = FLOAT if not setting.gpu else shape.stored_bytes
    logits = params.per_device_eval_batch_size * load.tokens * shape.vocabulary * (each + 2 * FLOAT) if load.head else 0
    return logits + (0 if setting.gpu else shape.weights * FLOAT)


def _beside(shape: Shape, how: Beside, params: TrainingParams, setting: Setting) -> int:
    if how.held == "stored":
        return shape.weights * shape.stored_bytes
    held = held_bytes(shape, params, setting) if how.held == "alike" else shape.weights * FLOAT
    whole = shape.weights * _computed_bytes(params, setting) if params.stage == 3 else 0
    return held // _over(params, 3) + whole


def drawn_bytes(shape: Shape, load: Load) -> int:
    """Return the keys and values of all sequences that are drawn at once, as long as they may become."""
    return load.drawn * load.tokens * 2 * shape.keys * shape.layers * FLOAT
