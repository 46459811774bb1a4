"""Dividing a model's weights among the processes that train it (FSDP2), and putting the whole model together at the end.

Owns what accelerate is told for it, and that the whole model answers as the divided one. Never trains, never saves.
Source: Zhao et al. 2023 (PyTorch FSDP, arXiv 2304.11277), section 3.
"""

from __future__ import annotations

import copy
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
    return {"fsdp": True, "fsdp_config": params.fsdp_config.model_dump()} if params.fsdp else {}


def shell_of(trainer: Trainer) -> Any:
    """Return a copy of the model that is about to be divided, without its weights.

    Raises:
        StepError: the library won't divide it, which needs GPUs.
    """
    import torch

    if not trainer.is_fsdp_enabled:
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


def put_together(trainer: Trainer, shell: Any) -> None:
    """Put the trained weights of all processes into `shell`, and that into the trainer; it is whole in the first process alone.

    Raises:
        StepError: it doesn't answer as the divided model does.
    """
    divided = trainer.model
    expected = _scores(divided, trainer.accelerator.device)
    weights = trainer.accelerator.get_state_dict(divided)
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
