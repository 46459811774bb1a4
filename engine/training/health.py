"""Health measures of trainings: rows cut, a loss that doesn't fall, preferences not learned, a policy that runs away.

Owns their bounds and sentences; they read what the trainers' figures hold anyway, and compute nothing on rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caiflow.engine.health import FigureValue, Measure, Reading
from caiflow.engine.training.sampled import FIRST, KNOWN, PARTING

_DRIFT = "raise `beta`, lower `learning_rate`, or take fewer steps"


def training() -> list[Measure]:
    """Return the measures of every training."""
    return [
        Measure(
            "rows_cut", "<= 0.1", "rows cut at max_length", "their ends aren't learned, which is where answers stop",
            "raise `max_length`, or leave out long rows with `length` in `filter`", figure=_over("rows_cut", "rows"),
        ),
        Measure(
            "rows_left_out", "<= 0.1", "rows that are too long to learn from", "the model never sees them",
            "raise `max_length`", figure=_too_long,
        ),
        Measure(
            "rows_blank", "<= 0.1", "rows with an empty prompt or reply", "there is nothing to learn in them",
            "look at the step that made them", figure=_left_out("blank"),
        ),
        Measure(
            "parting_tokens", "<= 0.05", "the model's own replies learnt in other tokens than it sampled",
            "it is taught tokens that it didn't choose",
            "other words come of the chat template, of which `plan` tells; the same words of sampling far from what "
            "is likely, or of a tokenizer that isn't the model's", figure=_parting,
        ),
    ]  # fmt: skip


def falling_loss() -> list[Measure]:
    """Return the measure of a loss that should be lower over the training than where it began."""
    return [
        Measure(
            "loss_fall", ">= 0", "fall from the first loss to the mean loss", "it shows no learning",
            "look at the curve with `caiflow show RUN STEP`: after few steps it tells mostly which rows came first; after "
            "many, try another `learning_rate`", figure=_fall,
        )
    ]  # fmt: skip


def preferences() -> list[Measure]:
    """Return the measures of trainings on pairs."""
    return [
        Measure(
            "pair_accuracy", "> 0.55", "pairs in which the chosen reply scores higher", "that is near chance",
            "look at the judge's notes, take more pairs, or another `learning_rate`", figure=_accuracy,
        ),
        Measure(
            "rows_equal", "<= 0.1", "pairs whose replies are the same", "there is nothing to prefer in them",
            "draw replies at a higher `temperature`, or raise `max_length` if they part behind it", figure=_left_out("equal"),
        ),
    ]  # fmt: skip


def policy() -> list[Measure]:
    """Return the measures of a policy trained on its own replies."""
    return [
        Measure(
            "kl_end", "<= 0.5", "divergence from the model before", "rewards that rise from here on are mostly exploits",
            _DRIFT, figure=lambda metrics: metrics.get("kl_end"), unit="nats a token",
        ),
        Measure(
            "length_growth", "<= 2", "length of the last replies over that of the first", "long replies may be all it learned",
            "set `length_penalty`, or look at what the reward model likes", figure=_over("length_end", "length_start"),
            unit="times",
        ),
        Measure(
            "boilerplate", "<= 0.3", "last replies with phrases of comfort or disclaimer", "over-training looks like this",
            _DRIFT, figure=lambda metrics: metrics.get("boilerplate_rate_end"),
        ),
        Measure(
            "equal_rewards", "<= 0.5", "prompts whose replies all score alike", "the replies have collapsed, or teach nothing",
            "raise the temperature, or `beta`", figure=lambda metrics: metrics.get("frac_reward_zero_std"),
        ),
        Measure(
            "unparsable", "<= 0.05", "replies' grades that can't be read", "those replies count as the mean of the others",
            "say in the grader's `question` how to reply, or take `method: logprobs`",
            figure=lambda metrics: metrics.get("unparsable"),
        ),
    ]  # fmt: skip


def _over(part: str, whole: str) -> FigureValue:
    return lambda metrics: metrics[part] / metrics[whole] if part in metrics and metrics.get(whole) else None


def _left_out(reason: str) -> FigureValue:
    return lambda metrics: metrics.get(f"rows_{reason}", 0) / metrics["rows"] if metrics.get("rows") else None


def _too_long(metrics: Mapping[str, Any]) -> float | None:
    if "rows_left_out" not in metrics or not metrics.get("rows"):
        return None
    others = sum(int(metrics.get(f"rows_{reason}", 0)) for reason in ("blank", "equal"))
    return (int(metrics["rows_left_out"]) - others) / int(metrics["rows"])


def _parting(metrics: Mapping[str, Any]) -> Reading | None:
    known, parting = metrics.get(KNOWN), metrics.get(PARTING, 0)
    return Reading(parting / known, parting, known, first=metrics.get(FIRST, "")) if known else None


def _fall(metrics: Mapping[str, Any]) -> float | None:
    first, mean = metrics.get("first_loss"), metrics.get("train_loss")
    return None if not first or mean is None else (first - mean) / abs(first)


def _accuracy(metrics: Mapping[str, Any]) -> float | None:
    """Return the accuracy on held-out pairs where there are some, else on those learned from."""
    names = ("eval_rewards_accuracies", "accuracy", "rewards_accuracies")
    return next((metrics[name] for name in names if metrics.get(name) is not None), None)
