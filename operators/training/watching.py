"""What the curve of a training on replies tells: drifts, what its judges went by, and where learning went past what is wanted.

Owns these figures, all of them out of the points that the trainer logged: a resumed run's are those of an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from caiflow.engine.health import Measure, Reading
from caiflow.operators.judging import health as judging
from caiflow.operators.training.asked import EARLY, UNREAD
from caiflow.operators.training.contests import JUDGE, PRINCIPLE

Point = Mapping[str, Any]
FEWEST_POINTS = 8
"""Points of a curve from which on it may tell an onset."""
VLLM_APART = "sampling/sampling_logp_difference/mean"
"""TRL's name for how far log-probabilities are apart, on the mean, when a token is drawn and when it is learnt."""
_DRAWS = 1000
_DRIFTS = {"reward": "reward", "kl": "kl", "length": "completions/mean_length", "boilerplate_rate": "boilerplate_rate"}


class Watched(NamedTuple):
    """What to tell of a curve: the score that nothing is learnt from, and the weights of the rewards that have a level.

    What a judge finds within a group has none: it is a half on the mean, whatever is learnt.
    """

    gold: str | None
    levels: Mapping[str, float]


class Onset(NamedTuple):
    """Where a curve was at its best before it fell: the last step of its best stretch, the means of that and of the last one.

    `p` is how often chance alone makes a fall as deep.
    """

    step: int
    best: float
    end: float
    p: float


def tell(metrics: dict[str, Any], history: Sequence[Point], watched: Watched, seed: int) -> None:
    """Put into a training's metrics what its curve tells, in place of the last points of its judges' figures."""
    for name in [name for name in metrics if name.startswith(("judge_", "principle_", "early_"))]:
        del metrics[name]
    early = _means(history, EARLY)
    metrics |= {"asked_early": fmean(early.values())} if early else {}
    apart = _means(history, VLLM_APART)
    metrics |= {"vllm_apart": fmean(apart.values())} if apart else {}
    metrics |= {**drifts(history), **unparsable(history), **judged(history), **gold(history, watched, seed)}


def measures(*, gold: bool, judge: bool, swap: bool, vllm: bool = False) -> list[Measure]:
    """Return what may be wrong with judges as rewards, with what is learnt from any reward, and with replies drawn by vLLM."""
    found = [one for one in judging.measures(swap=swap) if one.figure and one.name != "unparsable"] if judge else []
    if judge:
        found.append(
            Measure(
                "longer_won", "<= 0.8", "share that the longer of two replies wins", "the model learns to be long",
                "ask the judge for more than detail, set `length_penalty`, or take a stronger judge",
                figure=lambda metrics: metrics.get("longer_won"),
            )
        )  # fmt: skip
    if gold:
        found.append(
            Measure(
                "gold_fall", "<= 0", "fall of the gold score from its best", "what is learnt from then on is an exploit",
                "stop there (`max_steps`), raise `beta`, or mend the reward", figure=_fall, unit="points of that score",
            )
        )  # fmt: skip
    if vllm:
        found.append(
            Measure(
                "vllm_apart", "<= 0.1", "distance between what vLLM and the model that learns find likely",
                "most of what is learnt is thrown away, or learnt from another model's replies",
                "name the same `dtype` for the model as it is trained in, or leave `use_vllm` out",
                figure=lambda metrics: metrics.get("vllm_apart"), unit="nats a token",
            )
        )  # fmt: skip
    return found


def _fall(metrics: Mapping[str, Any]) -> Reading | None:
    if "gold_fall" not in metrics:
        return None
    onset = metrics.get("gold_onset")
    return Reading(metrics["gold_fall"], first=f"step {onset}" if onset is not None else "")


def drifts(history: Sequence[Point]) -> dict[str, float]:
    """Return the mean of the watched figures over the first and over the last tenth of the curve, so that a drift shows."""
    result: dict[str, float] = {}
    for name, key in _DRIFTS.items():
        values = [point[key] for point in history if point.get(key) is not None and "loss" in point]
        share = max(1, len(values) // 10)
        if values:
            result |= {f"{name}_start": fmean(values[:share]), f"{name}_end": fmean(values[-share:])}
    return result


def unparsable(history: Sequence[Point]) -> dict[str, float]:
    """Return the share of verdicts that couldn't be read, of the grader or judge with the most."""
    found = _means(history, UNREAD)
    return {"unparsable": max(found.values())} if found else {}


def judged(history: Sequence[Point]) -> dict[str, Any]:
    """Return each judge's figures, and the one furthest from 0 of each by itself, as `judge` has them."""
    judges: dict[str, dict[str, Any]] = {}
    for path, value in _means(history, JUDGE).items():
        name, figure = path.rsplit("/", 1)
        judges.setdefault(name, {})[figure] = value
    if not judges:
        return {}
    alone = {figure: max((one[figure] for one in judges.values() if figure in one), key=abs) for figure in _names(judges)}
    for path, value in _means(history, PRINCIPLE).items():
        name, principle, figure = path.rsplit("/", 2)
        judges[name].setdefault("by_principle", {}).setdefault(principle, {})[figure] = value
    return {**alone, "judges": judges}


def gold(history: Sequence[Point], watched: Watched, seed: int) -> dict[str, float]:
    """Return how the score that nothing is learnt from went, and from which step on it fell though the rewards didn't.

    Where no reward has a level, the fall alone tells.
    """
    if watched.gold is None:
        return {}
    name, levels = watched.gold, {one: weight for one, weight in watched.levels.items() if weight}
    points = [point for point in history if "loss" in point and point.get(_mean_of(name)) is not None]
    scores = [point[_mean_of(name)] for point in points]
    if not scores:
        return {}
    share = max(1, len(scores) // 10)
    found = {"gold_start": fmean(scores[:share]), "gold_end": fmean(scores[-share:])}
    learnt = [sum(weight * (point.get(_mean_of(one)) or 0.0) for one, weight in levels.items()) for point in points]
    fall = onset([point["step"] for point in points], scores, learnt if levels else (), seed=seed)
    if fall is None:
        return {**found, "gold_fall": 0.0}
    return {**found, "gold_best": fall.best, "gold_fall": fall.best - fall.end, "gold_onset": fall.step, "gold_p": fall.p}


def onset(
    steps: Sequence[int], scores: Sequence[float], learnt: Sequence[float] = (), *, seed: int = 0, level: float = 0.05
) -> Onset | None:
    """Return where scores were best before they fell to the end; None where the fall may be chance, or what is learnt fell too.

    The best of all stretches of a fifth of the points is compared with the last stretch. As the best is chosen afterwards, the
    difference is held against those of the same points in drawn orders: of a curve that stays as it is, at most `level` are
    said to fall, and fewer of one that rises.

    Source: the shape is that of Gao, Schulman and Hilton (2022), arXiv 2210.10760: a gold score rises, and falls while the
    reward that is learnt from goes on rising. The test is a permutation test of the greatest fall.
    """
    import numpy as np

    count = len(scores)
    if count < FEWEST_POINTS:
        return None
    width = max(2, count // 5)

    def stretches(values: Any) -> Any:
        sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
        return (sums[..., width:] - sums[..., :-width]) / width

    def fall(means: Any) -> Any:
        return means.max(axis=-1) - means[..., -1]

    means = stretches(np.asarray(scores, dtype=np.float64))
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.tile(np.asarray(scores, dtype=np.float64), (_DRAWS, 1)), axis=1)
    p = (1 + int((fall(stretches(drawn)) >= fall(means) - 1e-12).sum())) / (1 + _DRAWS)
    best = int(means.argmax())
    if p > level or best + width > count - width:
        return None
    if len(learnt):
        rewards = stretches(np.asarray(learnt, dtype=np.float64))
        noise = float(np.std(np.diff(learnt))) / np.sqrt(width)  # of the difference of two stretches, were nothing learnt
        if rewards[-1] < rewards[best] - 2 * noise:
            return None
    return Onset(steps[best + width - 1], float(means[best]), float(means[-1]), p)


def _mean_of(name: str) -> str:
    return f"rewards/{name}/mean"


def _names(judges: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(figure for one in judges.values() for figure in one))


def _means(history: Sequence[Point], begins: str) -> dict[str, float]:
    """Return the means over the curve of what is noted under names that begin so, without that beginning."""
    found: dict[str, list[float]] = {}
    for point in history:
        for name, value in point.items():
            if name.startswith(begins) and value is not None:
                found.setdefault(name.removeprefix(begins), []).append(value)
    return {name: fmean(values) for name, values in found.items()}
