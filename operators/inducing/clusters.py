"""Statements that say the same, gathered.

Owns the likeness and the order. Deterministic, and the same whatever order statements come in. Asks no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log, sqrt
from typing import NamedTuple

from caiflow.operators.measures.texts import words

RUN = 4
"""Letters in a row of a word, its ends counted, that two statements may share."""


class Cluster(NamedTuple):
    """Statements taken for one: the wording proposed most often, and all of them with how often each was."""

    statement: str
    members: Mapping[str, int]

    @property
    def size(self) -> int:
        """How often it was proposed, in any wording."""
        return sum(self.members.values())


def gathered(statements: Sequence[str], similarity: float) -> list[Cluster]:
    """Return the clusters, the largest first.

    Wordings are taken from the commonest to the rarest: each joins the cluster whose first wording it is most alike, if it is
    at least so alike (the cosine of runs of letters, weighed by how few statements have them), and begins one of its own
    otherwise.
    """
    counts = Counter(statements)
    wordings = sorted(counts, key=lambda text: (-counts[text], text))
    vectors = _vectors(wordings)
    heads: list[str] = []
    members: dict[str, dict[str, int]] = {}
    for text in wordings:
        likest = max(heads, key=lambda head: _cosine(vectors[text], vectors[head]), default=None)
        if likest is None or _cosine(vectors[text], vectors[likest]) < similarity:
            heads.append(likest := text)
        members.setdefault(likest, {})[text] = counts[text]
    found = [Cluster(head, members[head]) for head in heads]
    return sorted(found, key=lambda cluster: (-cluster.size, cluster.statement))


def beside(clusters: Sequence[Cluster], most: int, given: Sequence[str]) -> list[Cluster]:
    """Return the first clusters and, behind them, the statements given that head none of those, each with how often it came."""
    known = {cluster.statement: cluster for cluster in clusters}
    counts = {text: count for cluster in clusters for text, count in cluster.members.items()}
    found = {cluster.statement: cluster for cluster in clusters[:most]}
    for text in given:
        found.setdefault(text, known.get(text) or Cluster(text, {text: counts[text]} if text in counts else {}))
    return list(found.values())


def _vectors(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the runs of each text with their weights, of length 1."""
    runs = {text: Counter(_runs(text)) for text in texts}
    having = Counter(run for found in runs.values() for run in found)
    found = {}
    for text, own in runs.items():
        weighed = {run: count * (1 + log((1 + len(texts)) / (1 + having[run]))) for run, count in own.items()}
        length = sqrt(sum(value * value for value in weighed.values())) or 1.0
        found[text] = {run: value / length for run, value in weighed.items()}
    return found


def _runs(text: str) -> list[str]:
    """Return the runs of letters within words: `being kind` has those of ` being ` and ` kind `."""
    padded = [f" {word} " for word in words(text)]
    return [word[start : start + RUN] for word in padded for start in range(max(1, len(word) - RUN + 1))]


def _cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    small, large = sorted((one, other), key=len)
    return sum(value * large.get(run, 0.0) for run, value in small.items())
