"""Frozen weights in 4 or 8 bits under adapters (QLoRA), by bitsandbytes, on GPUs and CPUs.

Owns how weights are rounded, and how they become plain ones again to fold adapters into. Never loads or saves a model.
Source: Dettmers et al. 2023 (arXiv 2305.14314) for NormalFloat and the second rounding of its scales.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import StepError
from caiflow.engine.machine import pip_command

if TYPE_CHECKING:
    import torch

    from caiflow.engine.training.params import TrainingParams


def options(bits: str, *, in_bf16: bool) -> dict[str, Any]:
    """Return what to load a model with so that its linear layers hold `bits`, on this process's own device.

    Raises:
        StepError: bitsandbytes is missing, or doesn't run on this device.
    """
    import torch
    from transformers import BitsAndBytesConfig

    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    _require(bits, device)
    if bits == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if in_bf16 else torch.float32,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def _require(bits: str, device: torch.device) -> None:
    if not find_spec("bitsandbytes"):
        raise StepError(
            f"lora.quantization: {bits} needs the bitsandbytes library", f"{pip_command('qlora')}, or leave `quantization` out"
        )
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that only save time
    import bitsandbytes

    if device.type not in bitsandbytes.supported_torch_devices:
        known = ", ".join(sorted(bitsandbytes.supported_torch_devices))
        what = f"lora.quantization: {bits} needs a device that bitsandbytes runs on, got {device.type}"
        raise StepError(what, f"leave `quantization` out, or train on one of these: {known}")


def hold_layout(model: Any) -> None:
    """Have no layer of a quantised model turn its weights into another layout.

    On processors with AVX512-BF16 a 4-bit layer does that for good at its first pass outside training, such as an evaluation.
    Its kernel is in bfloat16 only, takes no width that 32 doesn't divide, and passes no gradient on: the rest of the training
    would go wrong.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def train_in_float32(model: Any) -> None:
    """Make float32 of all that is trained beside frozen weights: in bfloat16 small steps are lost.

    TRL puts adapters over quantised weights in that, and PEFT leaves a head beside adapters in the dtype of the model.
    """
    for weights in model.parameters():
        if weights.requires_grad:
            weights.data = weights.data.float()


def is_quantised(params: TrainingParams) -> bool:
    """Say whether a step trains over quantised weights."""
    return params.lora is not None and params.lora.quantization is not None


def dequantised(model: Any) -> Any:
    """Return a quantised model with plain linear layers of the rounded weights, in its own dtype, on the CPU.

    One layer after another, so that a GPU never holds all of them.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for name, layer in list(model.named_modules()):
        if isinstance(layer, (Linear4bit, Linear8bitLt)):
            model.set_submodule(name, _plain(layer, model.config.dtype))
    model.hf_quantizer.remove_quantization_config(model)
    return model.to("cpu")


def _plain(layer: Any, dtype: torch.dtype) -> torch.nn.Linear:
    import torch
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
    plain.weight = torch.nn.Parameter(weight.to("cpu", dtype), requires_grad=False)
    if layer.bias is not None:
        plain.bias = torch.nn.Parameter(layer.bias.to("cpu", dtype), requires_grad=False)
    return plain
