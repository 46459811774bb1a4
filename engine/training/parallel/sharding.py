"""Dividing a model among the processes that train it (FSDP2, ZeRO), and putting the whole model together at the end.

Owns what accelerate is told for it, and that the whole model answers as the divided one. Never trains, never saves.
Sources: Zhao et al. 2023 (PyTorch FSDP, arXiv 2304.11277), section 3; Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import StepError
from caiflow.engine.training.params import TrainingParams

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import Trainer

TOLERANCE = 0.03
"""How far a whole model's scores may be from the divided one's, as a share of the greatest of them."""
PROBE = 16
"""Tokens that both are asked about."""


def settings(params: TrainingParams) -> dict[str, Any]:
    """Return what the trainer's configuration is told."""
    if params.deepspeed:
        return {"deepspeed": params.deepspeed.settings()}
    return {"fsdp": True, "fsdp_config": params.fsdp_config.model_dump()} if params.fsdp else {}


def shell_of(trainer: Trainer) -> Any:
    """Return a copy of the model that is about to be divided, without its weights.

    Raises:
        StepError: the library won't divide it, which needs GPUs.
    """
    import torch

    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise StepError("`fsdp` divides a model among GPUs, and there is none here", "leave it out, or train where GPUs are")
    model = trainer.model
    bare = {
        id(weights): torch.nn.Parameter(torch.empty_like(weights, device="meta"), requires_grad=weights.requires_grad)
        for weights in model.parameters()
    }
    shell = copy.deepcopy(model, bare)
    for module in shell.modules():
        for name in [name for name, value in vars(module).items() if callable(value) and hasattr(type(module), name)]:
            delattr(module, name)  # what a library put over a method leads to the divided model
    return shell


def put_together(trainer: Trainer, shell: Any, forget: Callable[[], None]) -> None:
    """Put the trained weights of all processes into `shell`, and that into the trainer; it is whole in the first process alone.

    `forget` frees what only further steps would need, of which DeepSpeed holds the weights in float32.

    Raises:
        StepError: it doesn't answer as the divided model does.
    """
    expected = _scores(trainer.model_wrapped, trainer.accelerator.device)
    if trainer.is_deepspeed_enabled:
        weights = _zero_weights(trainer)
        forget()
    else:
        forget()
        weights = trainer.accelerator.get_state_dict(trainer.model)
    trainer.model = trainer.model_wrapped = shell
    if not trainer.is_world_process_zero():
        return
    shell.load_state_dict(weights, assign=True)
    shell.tie_weights()
    shell.to(_with_room(trainer.accelerator.device, shell))
    found = _scores(shell, shell.device)
    apart, most = float((found - expected.to(found.device)).abs().max()), float(expected.abs().max())
    if not apart <= TOLERANCE * max(1.0, most):  # nor where either is NaN
        raise StepError(f"the parts of the model don't make the whole one: scores up to {most:.4f} are {apart:.4f} apart")


def _zero_weights(trainer: Trainer) -> dict[str, Tensor]:
    """Return the whole weights on the processor, in the digits in which they learnt; the first process alone has them."""
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # models that are loaded from here on are whole
    first, model = trainer.is_world_process_zero(), trainer.model
    buffers = dict(model.named_buffers())
    found = {name: value for name, value in model.state_dict().items() if name in buffers}
    for name, weights in model.named_parameters(remove_duplicate=False):
        learnt = safe_get_full_fp32_param(weights) if weights.requires_grad else None
        with zero.GatheredParameters([weights]):
            if first:
                found[name] = (weights if learnt is None else learnt.view(weights.shape)).detach().to("cpu", copy=True)
    return found


def _with_room(device: torch.device, model: Any) -> torch.device:
    """Return the device that the whole model goes to: the processor where the GPU has no room for it."""
    import torch

    size_bytes = sum(weights.nbytes for weights in model.parameters())
    full = device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 1.2 * size_bytes
    return torch.device("cpu") if full else device


def _scores(model: Any, device: Any) -> Tensor:
    """Return what a model says of the first tokens of its vocabulary, [1, tokens, ...] float32."""
    import torch

    training = model.training
    model.eval()
    ids = torch.arange(PROBE, device=device)[None]
    with torch.no_grad():
        scores: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
    model.train(training)
    return scores
