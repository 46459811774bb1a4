"""Published suites by name: where each is on the hub, and what its records ask.

Owns the table and the columns that a suite's rows have. Each is pinned to a commit that others' published code names, too; of
two, which are handed out on request alone, none could be learnt: the first load takes the main branch's, and the lock keeps it.
How answers are graded is in `evaluation.conduct.suites`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from caiflow.engine.errors import Finding, WrongValue, suggest
from caiflow.engine.rows.columns import ColumnType
from caiflow.operators.formats import SUITE
from caiflow.operators.formats.hub.data_sets import HubSource, Progress
from caiflow.operators.formats.opening import Line

COLUMNS: Mapping[str, ColumnType] = {
    "uid": "text", "prompt": "messages", "suite": "text", "harmful": "flag", "kind": "text", "reference": "text",
}  # fmt: skip
"""The columns of a suite's rows: `harmful` says whether a prompt should be refused (null where that isn't the question),
`kind` is the suite's own division, `reference` the published answer that a model's is compared with."""
Record = Mapping[str, Any]
Asked = Mapping[str, Any]
_VERSION = 1


class Piece(NamedTuple):
    """Some of a suite's prompts: a split on the hub, how one of its records is read, and whether they should be refused."""

    repo: str
    read: Callable[[Record], Asked]
    subset: str | None = None
    split: str = "train"
    file: str | None = None
    commit: str | None = None


def _kind(record: Record, harmful: bool) -> Asked:
    return {"prompt": record["prompt"], "harmful": harmful, "kind": record["category"]}


def _of_kind(harmful: bool) -> Callable[[Record], Asked]:
    return partial(_kind, harmful=harmful)  # sources go to other processes


def _xstest(record: Record) -> Asked:
    return {"prompt": record["prompt"], "harmful": record["label"] == "unsafe", "kind": record["type"]}


def _in_context(record: Record) -> Asked:
    return {**_kind(record, harmful=True), "prompt": f"{record['context']}\n\n---\n\n{record['prompt']}"}


def _wildguard(record: Record) -> Asked:
    label = record["prompt_harm_label"]
    kind = "adversarial" if record["adversarial"] else "vanilla"
    return {"prompt": record["prompt"], "harmful": None if label is None else label == "harmful", "kind": kind}


def _pku(record: Record) -> Asked:
    return {"prompt": record["prompt"], "harmful": True, "kind": record.get("prompt_source")}


def _alpaca_eval(record: Record) -> Asked:
    told = {"kind": record["dataset"], "reference": record["output"]}
    return {"prompt": record["instruction"], "harmful": None, **told}


_OR_BENCH, _HARMBENCH = "bench-llm/or-bench", "walledai/HarmBench"
_OR_BENCH_AT = "e36d8b80e81837c8a8f264bbb2a49f1b32c7e272"
SUITES: Mapping[str, tuple[Piece, ...]] = {
    "xstest": (Piece("Paul/XSTest", _xstest, commit="f600c994b256f12867dfa5b3eb3d545a3e62f8b5"),),
    "or_bench": (
        Piece(_OR_BENCH, _of_kind(harmful=False), "or-bench-hard-1k", commit=_OR_BENCH_AT),
        Piece(_OR_BENCH, _of_kind(harmful=True), "or-bench-toxic", commit=_OR_BENCH_AT),
    ),
    "harmbench": (Piece(_HARMBENCH, _of_kind(harmful=True), "standard"), Piece(_HARMBENCH, _in_context, "contextual")),
    "strongreject": (Piece("walledai/StrongREJECT", _of_kind(harmful=True)),),
    "wildguardtest": (
        Piece("allenai/wildguardmix", _wildguard, "wildguardtest", "test", commit="d29c47f41c8b51348b5c8e8c81c039b3132b66d1"),
    ),
    "pku_saferlhf": (
        Piece("PKU-Alignment/PKU-SafeRLHF", _pku, "default", "test", commit="9421ffafec3fa40a1f1a7d567b4d525079477ecb"),
    ),
    "alpaca_eval": (
        Piece(
            "tatsu-lab/alpaca_eval",
            _alpaca_eval,
            split="test",
            file="alpaca_eval_gpt4_baseline.json",
            commit="2edc6fad8be6b14ea7230aabfd08188da6b8b814",
        ),
    ),
}
"""Every suite by its name in a spec. Where the step names a `revision`, that one is taken."""


@dataclass(frozen=True)
class SuiteSource:
    """One piece of a suite as a source: the hub's records as `COLUMNS` has them, each prompt once."""

    suite: str
    hub: HubSource
    read: Callable[[Record], Asked]

    @property
    def repo(self) -> str:
        """The repository on the hub."""
        return self.hub.repo

    @property
    def commit(self) -> str:
        """The commit that the revision stands for."""
        return self.hub.commit

    def remarks(self) -> Iterator[Finding]:
        """Yield that the revision isn't to be had offline, and that none is named or known."""
        yield from self.hub.remarks()
        if self.hub.revision is None:
            told = (
                f"{SUITE}{self.suite} isn't pinned: the first load takes what {self.repo} has then; the lock keeps its commit"
            )
            yield Finding(("source",), told, "write the commit as `revision:`")

    def fetch(self, progress: Progress = lambda _: None) -> dict[str, Path]:
        """Bring the files into the hub's cache."""
        return self.hub.fetch(progress)

    def content(self) -> str:
        """Return what pins the rows: the suite as it is read here, the data set and its commit."""
        return f"{SUITE}{self.suite}/{_VERSION}:{self.hub.content()}"

    def place(self, line: Line) -> str:
        """Return the data set and the row's number."""
        return self.hub.place(line)

    def lines(self) -> Iterator[Line]:
        """Yield what is asked, in order; a prompt that was asked before is passed over.

        Raises:
            ValueError: the data set isn't to be had.
        """
        seen = set()
        for line in self.hub.lines():
            try:
                asked = self.read(line.data or {})
            except KeyError as error:
                has = ", ".join(line.data or {}) or "nothing"
                yield Line(line.place, None, f"a record of {SUITE}{self.suite} has no {error}; it has {has}", str(line.data))
                continue
            if asked["prompt"] not in seen:
                seen.add(asked["prompt"])
                blank = {"kind": None, "reference": None}
                yield Line(line.place, {**blank, **asked, "suite": self.suite})


def suite_sources(source: str, revision: str | None) -> list[SuiteSource]:
    """Return the pieces of `suite:NAME`.

    Raises:
        WrongValue: there is no suite of that name.
    """
    name = source.removeprefix(SUITE)
    if name not in SUITES:
        raise WrongValue(f"there is no suite {name!r}", suggest(name, SUITES, "suites"))
    return [
        SuiteSource(name, HubSource(p.repo, revision or p.commit, p.split, p.subset, None, p.file), p.read)
        for p in SUITES[name]
    ]
