"""Ends a training at the first loss, gradient or weight that is no finite number, before anything of it is saved.

Owns what is looked at in each step, and the error. Never mends anything.
"""

from __future__ import annotations

import math
from typing import Any

from caiflow.engine.errors import StepError
from caiflow.engine.training.private import Hooks

ADVICE = "lower `learning_rate`, give it `warmup_steps`, or hold gradients down with `max_grad_norm`"


def no_number(what: str, value: float, step: int, rate: float) -> StepError:
    """Return the error of a training that came to no finite number at `step` (from 1), which was taken at this rate."""
    return StepError(f"training step {step}, learning rate {rate:g}: {what} not finite, got {value}", ADVICE)


def largest(model: Any) -> float:
    """Return the greatest absolute value among the weights that are trained: NaN or infinite where one of them is.

    Of a divided model each process looks at its own share, in which a small weight may have no part.
    """
    import torch

    weights = [_own(weight).detach() for weight in model.parameters() if weight.requires_grad]
    norms = torch._foreach_norm([weight for weight in weights if weight.numel()], math.inf)
    return float(torch.stack([norm.float() for norm in norms]).max())


def _own(weight: Any) -> Any:
    """Return this process's share of a weight, as FSDP2 or ZeRO-3 divides it."""
    return weight.to_local() if hasattr(weight, "to_local") else getattr(weight, "ds_tensor", weight)


class Finite(Hooks):
    """Mixed into the libraries' trainers: each step is taken only from a finite loss and finite gradients."""

    state: Any
    lr_scheduler: Any

    def training_step(self, *args: Any, **options: Any) -> Any:
        """Return the loss of one batch.

        Raises:
            StepError: it isn't finite, or replies can't be drawn since the model's probabilities aren't.
        """
        try:
            loss = super().training_step(*args, **options)  # type: ignore[misc]
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            raise self._no_number("the model's probabilities are", math.nan) from error
        if not math.isfinite(value := float(loss)):
            raise self._no_number("the loss is", value)
        return loss

    def check_gradients(self, norm: float) -> None:
        """Raise StepError where the gradients aren't finite."""
        if not math.isfinite(norm):
            raise self._no_number("the norm of the gradients is", norm)

    def _no_number(self, what: str, value: float) -> StepError:
        return no_number(what, value, self.state.global_step + 1, self.lr_scheduler.get_last_lr()[0])
