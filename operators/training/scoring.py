"""Reward models as those who use them see them: conversations in, centred scores out; and how good such scores are.

Owns scoring and its figures. Never trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import StepError
from caiflow.engine.llm.base import Message, ModelSource
from caiflow.engine.training.tokens import reply_ids

if TYPE_CHECKING:
    from caiflow.engine.llm.render import Renderer

MEAN = "reward_mean"
"""The entry of a reward model's config.json that scoring subtracts: the mean score on held-out rows."""
Pairs = Any
"""Tokenised preferences, as a data set or as a list of its rows."""


@dataclass(slots=True)
class RewardModel:
    """A loaded reward model; its scores have mean 0 over the rows it was centred on."""

    model: Any
    renderer: Renderer
    mean: float
    batch_size: int = 16

    def score(self, prompts: Sequence[Sequence[Message]], replies: Sequence[str]) -> list[float]:
        """Return the centred score of each reply to its prompt."""
        pairs = zip(prompts, replies, strict=True)
        coded = [reply_ids(self.renderer, prompt, {"role": "assistant", "content": reply}) for prompt, reply in pairs]
        return self.score_ids([head + tail for head, tail in coded])

    def score_ids(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Return the centred score of each whole conversation, given as token ids."""
        scores = raw_scores(self.model, sequences, self.renderer.tokenizer.pad_token_id, self.batch_size)
        return [score - self.mean for score in scores]


def load_reward(source: ModelSource, batch_size: int = 16) -> RewardModel:
    """Load a reward model for scoring, on the GPU where there is one.

    Raises:
        StepError: the model gives no single score.
    """
    import torch

    from caiflow.engine.llm.render import Renderer
    from caiflow.engine.training.models import load_plain, load_tokenizer

    tokenizer = load_tokenizer(source)
    model = load_plain(source, task="reward").eval()
    architectures = model.config.architectures or []
    if not any("SequenceClassification" in name for name in architectures):
        raise StepError(f"{source.path}: not a reward model, got {architectures}; train one with `op: reward`")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return RewardModel(model, Renderer(tokenizer), float(getattr(model.config, MEAN, 0.0)), batch_size)


def raw_scores(model: Any, sequences: Sequence[Sequence[int]], pad_id: int, batch_size: int = 16) -> list[float]:
    """Return the model's score of each sequence of token ids, not centred; sequences of like length share a batch."""
    import torch

    order = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
    scores = [0.0] * len(sequences)
    training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        longest = max(len(sequences[place]) for place in places)
        padded = [[*sequences[place], *[pad_id] * (longest - len(sequences[place]))] for place in places]
        ids = torch.tensor(padded, device=model.device)
        lengths = torch.tensor([len(sequences[place]) for place in places], device=model.device)
        mask = (torch.arange(longest, device=model.device)[None] < lengths[:, None]).long()
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
        for place, score in zip(places, logits.float().tolist(), strict=True):
            scores[place] = score
    model.train(training)
    return scores


def pair_scores(model: Any, data: Pairs, pad_id: int, batch_size: int = 16) -> tuple[list[float], list[float]]:
    """Return the uncentred scores of the chosen and of the rejected replies of tokenised preferences."""
    replies = [[*row["prompt_ids"], *row[side]] for side in ("chosen_ids", "rejected_ids") for row in data]
    scores = raw_scores(model, replies, pad_id, batch_size)
    return scores[: len(data)], scores[len(data) :]


@dataclass(frozen=True, slots=True)
class PairLoss:
    """The mean cross-entropy in nats of a model's preferences against the labels of tokenised pairs."""

    pairs: Sequence[Mapping[str, Any]]
    pad_id: int
    batch_size: int

    def __call__(self, model: Any) -> float:
        """Return the loss."""
        chosen, rejected = pair_scores(model, self.pairs, self.pad_id, self.batch_size)
        margins = (yes - no for yes, no in zip(chosen, rejected, strict=True))
        return sum(map(soft_loss, margins, (pair["p_chosen"] for pair in self.pairs))) / len(self.pairs)


def quality(chosen: Sequence[float], rejected: Sequence[float], p_chosen: Sequence[float], bins: int = 10) -> dict[str, Any]:
    """Return how well scores agree with labels: accuracy, margin, cross-entropy, calibration error and the bins behind it.

    Accuracy counts the rows whose label isn't even; None where there are none. The margin is the mean difference of scores,
    chosen less rejected. Each pair counts in both orders for the calibration, so that it doesn't matter which is called chosen.
    """
    from caiflow.operators.measures.statistics import calibration

    margins = [left - right for left, right in zip(chosen, rejected, strict=True)]
    decided = [(margin, p) for margin, p in zip(margins, p_chosen, strict=True) if p != 0.5]
    right = sum(0.5 if margin == 0 else float((margin > 0) == (p > 0.5)) for margin, p in decided)
    predicted = [sigmoid(margin) for margin in margins]
    found = calibration([*predicted, *(1 - q for q in predicted)], [*p_chosen, *(1 - p for p in p_chosen)], bins=bins)
    return {
        "accuracy": right / len(decided) if decided else None,
        "margin": sum(margins) / len(margins),
        "cross_entropy": sum(soft_loss(margin, p) for margin, p in zip(margins, p_chosen, strict=True)) / len(margins),
        "ece": found.error,
        "bins": [one._asdict() for one in found.bins],
    }


def sigmoid(value: float) -> float:
    """Return the logistic function, without overflow."""
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def soft_loss(margin: float, p: float) -> float:
    """Return the cross-entropy in nats of P(chosen better) = sigmoid(margin) against the label p."""
    softplus = math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0)
    return softplus + (1 - p) * margin
