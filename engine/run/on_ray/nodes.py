"""The nodes of a cluster: what each has, whether it sees the store, whether its code and its models are those here, what fits.

Asks nodes and decides; places nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.errors import ClusterError, PlanError, StepError
from caiflow.engine.run.presence import Place, Told, lacking, told_here
from caiflow.engine.store.disk import storing
from caiflow.engine.store.file_digests import file_sizes
from caiflow.engine.store.share import MARK, Held, locks_had
from caiflow.engine.version import VERSION

if TYPE_CHECKING:
    from caiflow.engine.run.units import StepResult

ANSWER_S = 30.0
"""Longest wait for the nodes to answer; a process for the question has to start on each."""
SEEN_S = 15.0
"""How long what another node wrote may take to be seen here."""
_OURS = ("caiflow.engine", "caiflow.operators")
Labels = Mapping[str, str]
"""Ray's labels of nodes."""
_NONE: Labels = MappingProxyType({})
Code = Mapping[str, str]
"""What a process runs: versions by name, `code` for caiflow's own sources, and a digest for each operator of others."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is up: its id in Ray, its address, its CPU cores and GPUs, and the port of its raylet."""

    id: str
    address: str
    cpus: float
    gpus: float
    port: int = 0
    labels: Labels = field(default_factory=dict, compare=False)

    def has(self, labels: Labels) -> bool:
        """Tell whether it has these labels, as one that is to come may."""
        return not self.id or labels.items() <= self.labels.items()

    @property
    def told(self) -> str:
        """What it is called to people."""
        return f"{self.address} ({self.cpus:g} CPU cores, {self.gpus:g} GPUs)"


class Growth(NamedTuple):
    """By how much a cluster's autoscaler may make it larger: so many nodes of so many GPUs each."""

    nodes: int = 0
    gpus: int = 0

    @classmethod
    def read(cls, text: str | None, address: str | None) -> Growth:
        """Return what a text like `2x8` says of the cluster at an address; no growth without a text.

        Raises:
            PlanError: it says nothing of the kind, or of no cluster.
        """
        if not text:
            return cls()
        if not address:
            raise PlanError("--grow: this machine can't grow", "name a cluster with --address")
        nodes, _, gpus = text.partition("x")
        if not (nodes.isdecimal() and gpus.isdecimal() and int(nodes) and int(gpus)):
            raise PlanError(f"--grow: {text!r} isn't nodes and the GPUs of each", "write 2x8 for two nodes of eight")
        return cls(int(nodes), int(gpus))

    @property
    def told(self) -> str:
        """What may come, to people; empty where nothing may."""
        return f"up to {self.nodes} nodes of {self.gpus} GPUs may come" if self.nodes else ""

    def to_come(self, came: int) -> list[Node]:
        """Return the nodes that may come beside those that `came`: of them no more is known than their GPUs."""
        return [Node("", "a node that may come", 0.0, float(self.gpus))] * max(0, self.nodes - came)


class Needed(NamedTuple):
    """A model by its name in the spec, what it is loaded from, and on which nodes: those with so many GPUs and these labels."""

    model: str
    places: tuple[Place, ...]
    gpus: float
    labels: Labels

    def on(self, node: Node) -> bool:
        """Tell whether it may be loaded on a node."""
        return node.gpus >= self.gpus and node.has(self.labels)


_NONCE = "nonce"
_BLIND = (
    "locks in the store don't hold between the nodes, so that calls may be paid for twice and caps be exceeded "
    "(mount it with locks that all see: `caiflow doctor`)"
)
_EVERYWHERE = (
    "put models on a file system that all nodes share (HF_HOME for those of the hub) or on every node under one path, "
    "or say with `node_labels` which nodes have them"
)
_OWN_LABELS = ("ray.io/node-id", "ray.io/node-group", "ray.io/availability-region")
"""What Ray labels every node with, and no choice goes by."""


def alive() -> list[Node]:
    """Return the nodes that are up."""
    import ray

    up = [(node, node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [
        Node(n["NodeID"], n["NodeManagerAddress"], has.get("CPU", 0.0), has.get("GPU", 0.0), n["NodeManagerPort"], n["Labels"])
        for n, has in up
    ]


def this_node() -> str:
    """Return the node that this process is on, by its id."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def refuse_impossible(nodes: Sequence[Node], gpus: float, count: int, what: str, labels: Labels = _NONE) -> None:
    """Raise where `count` processes of `gpus` GPUs each can never run here, even one after the other closed its own.

    Raises:
        ClusterError: no node has the labels, or of those none has as many GPUs, or all together have too few.
    """
    if labels:
        wanted = ", ".join(f"{name}: {value}" for name, value in labels.items())
        there = sorted({f"{name}: {value}" for node in nodes for name, value in node.labels.items() if name not in _OWN_LABELS})
        nodes = [node for node in nodes if node.has(labels)]
        if not nodes:
            told = f"{what} wants nodes with the labels {wanted}; there is none"
            raise ClusterError(told, f"the labels there are: {', '.join(there) or 'none'}")
        what = f"{what}, on nodes with {wanted},"
    largest, total = max((node.gpus for node in nodes), default=0.0), sum(node.gpus for node in nodes)
    if gpus > largest:
        raise ClusterError(
            f"{what} wants {gpus:g} GPUs on one node; of the {len(nodes)} here the largest has {largest:g}", "lower `num_gpus`"
        )
    if gpus * count > total:
        raise ClusterError(
            f"{what} wants {gpus * count:g} GPUs, the cluster has {total:g}", "lower `num_gpus`, `replicas` or `workers`"
        )
    if gpus and (room := places(nodes, gpus)) < count:
        told = f"{what} wants {gpus:g} GPUs on one node {count} times; the nodes have room for it {room:g} times"
        raise ClusterError(told, "lower `num_gpus`, `replicas` or `workers`")


def places(nodes: Sequence[Node], gpus: float) -> float:
    """Return how many processes of `gpus` GPUs each have room on these nodes: of a share, as many as fit on each GPU."""
    if not gpus:
        return math.inf if nodes else 0
    shares = math.floor(1 / gpus + 1e-6)
    return sum(math.floor(node.gpus) * shares if shares else math.floor(node.gpus / gpus) for node in nodes)


def refuse_strangers(
    nodes: Sequence[Node], home: Path, operators: Mapping[str, str], models: Sequence[Needed] = ()
) -> list[str]:
    """Raise unless every other node reads what this process writes into the store at `home`, and runs the same code.

    `operators` are the modules of operators that don't come with caiflow, by the operators' names; `models` have to be as they
    are here wherever they may be loaded. Returns what is to be said of nodes that don't see this process's locks: nothing is
    lost by that, but work may be done twice.

    Raises:
        ClusterError: names each node with what is wrong with it.
    """
    others = [node for node in nodes if node.id != this_node()]
    if not others:
        return []
    with contextlib.closing(Probe(home, operators, models)) as probe:
        asked = _answers({node: probe.ask(node) for node in others})
        wrong = [f"{node.address} {said}" for node, found in asked if (said := probe.wrong(found))]
        without = [f"{node.address} {said}" for node, found in asked for said in probe.without(node, found)]
    if wrong or without:
        told = "the cluster isn't fit for this run: " + "; ".join([*wrong, *without])
        raise ClusterError(told, _EVERYWHERE if without else "")
    return blind(asked)


def blind(answers: Sequence[tuple[Node, Found | str]]) -> list[str]:
    """Return what is to be said where nodes were given locks that the asking process holds."""
    nodes = [f"{node.address} ({', '.join(found.had)})" for node, found in answers if isinstance(found, Found) and found.had]
    return [f"{_BLIND}: {'; '.join(nodes)}"] if nodes else []


def refuse_unseen(results: Mapping[str, StepResult], place: Callable[[], str]) -> None:
    """Raise where what a worker says it wrote isn't what is here: its node may have another store under the same path.

    Other nodes' files may take a moment to be seen (NFS keeps what it knows of a folder for some seconds).

    Raises:
        StepError: names the node, by `place`, and a file.
    """
    until = time.monotonic() + SEEN_S
    while unseen := [path for one in results.values() if one.staged for path in _unseen(one.staged, one.files)]:
        if time.monotonic() > until:
            raise StepError(
                f"{place()} wrote {len(unseen)} files that aren't here as it wrote them, {unseen[0]} among them",
                "put CAIFLOW_HOME on a file system that all nodes share, under one path",
            )
        time.sleep(0.2)


def _unseen(folder: Path, files: Mapping[str, int]) -> list[Path]:
    here = file_sizes(folder)
    return [folder / name for name in sorted({*files, *here}) if files.get(name) != here.get(name)]


class Probe:
    """What nodes are asked, and what they must answer; until it is closed a mark is in the store, which they have to see."""

    def __init__(self, home: Path, operators: Mapping[str, str], models: Sequence[Needed] = ()) -> None:
        self._home = home
        self._operators = dict(operators)
        self._models = models
        self._code = code_here(operators)
        self._here: dict[Place, Told] = {}
        self._nonce = uuid.uuid4().hex
        self._mark = home / f"{MARK}{self._nonce}"
        with storing(home):
            self._mark.mkdir(parents=True)
            (self._mark / _NONCE).write_text(self._nonce, encoding="utf-8")
            self._held = Held(self._mark)

    def ask(self, node: Node) -> Any:
        """Have a node asked, in a plain process, which it may have at hand: one with variables of its own has to be made."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        places = {place for needed in self._models if needed.on(node) for place in needed.places}
        look = ray.remote(_look).options(scheduling_strategy=On(node.id, soft=False), num_cpus=0, max_retries=0)
        return look.remote(str(self._mark), self._operators, places)

    def wrong(self, found: Found | str) -> str:
        """Return what is wrong with a node's answer, in words that follow its name; empty where nothing is."""
        return _wrong(found, self._nonce, self._home, self._code)

    def without(self, node: Node, found: Found | str) -> list[str]:
        """Return what a node that sees the store lacks of the models that it may load, in such words."""
        if isinstance(found, str) or not found.seen:
            return []
        needed = [(one.model, place) for one in self._models if one.on(node) for place in one.places]
        lacks = [(model, lacking(place, found.models[place], self._told(place))) for model, place in needed]
        return [f"{said} (the model {model})" for model, said in lacks if said]

    def close(self) -> None:
        """Take the mark away."""
        self._held.close()
        shutil.rmtree(self._mark, ignore_errors=True)

    def _told(self, place: Place) -> Told:
        if place.local and place not in self._here:
            self._here[place] = told_here(place)
        return self._here.get(place, {})


def _answers(asked: Mapping[Node, Any]) -> list[tuple[Node, Found | str]]:
    """Return each node's answer, or what was in its way."""
    import ray

    answered, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
    late = f"gave no answer in {ANSWER_S:g} s"
    return [(node, said_in(answer) if answer in answered else late) for node, answer in asked.items()]


def said_in(answer: Any) -> Found | str:
    """Return what a node has answered, or what kept it from that."""
    import ray

    try:
        found: Found = ray.get(answer)
    except Exception as error:  # whatever keeps caiflow from being imported there
        return f"can't run this caiflow: {str(error).strip().splitlines()[-1]}"
    return found


class Found(NamedTuple):
    """What a node reads of the store, what it runs, which locks it was given that the asking process holds, and its models."""

    seen: str
    code: Code
    had: Sequence[str] = ()
    models: Mapping[Place, Told] = MappingProxyType({})


def _look(mark: str, operators: Mapping[str, str], places: Collection[Place]) -> Found:
    try:
        seen = (Path(mark) / _NONCE).read_text(encoding="utf-8")
    except OSError:
        return Found("", code_here(operators))
    try:
        had = locks_had(Path(mark))
    except OSError as error:
        had = [error.strerror or str(error)]
    return Found(seen, code_here(operators), had, {place: told_here(place) for place in places})


def _wrong(found: Found | str, nonce: str, home: Path, here: Code) -> str:
    """Return what is wrong with a node's answer, in words that follow its name; empty where nothing is."""
    if isinstance(found, str):
        return found
    unseen = f"doesn't see the store at {home}: put CAIFLOW_HOME on a file system that all nodes share, under one path"
    other = unlike(found.code, here)
    said = [*([unseen] if found.seen != nonce else []), *([f"has {', '.join(other)}: install the same there"] if other else [])]
    return ", and ".join(said)


def code_here(operators: Mapping[str, str]) -> Code:
    """Return what this process runs, with the modules of `operators` by their names; empty where there is no such module."""
    import ray

    return {
        "caiflow": VERSION,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "Ray": ray.__version__,
        "code": "".join(map(sources_digest, _OURS)),
        **{f"`{name}`": sources_digest(module) for name, module in operators.items()},
    }


def unlike(there: Code, here: Code) -> list[str]:
    """Return what differs there, in words that follow "it has"; the sources behind another version differ of course."""
    versions = [name for name in ("caiflow", "Python", "Ray") if there[name] != here[name]]
    said = [f"{name} {there[name]}, here it is {here[name]}" for name in versions]
    if "caiflow" not in versions and there["code"] != here["code"]:
        said.append(f"other sources of caiflow {here['caiflow']} than here")
    for name in sorted(here.keys() - {"caiflow", "Python", "Ray", "code"}):
        if there[name] != here[name]:
            said.append(f"another operator {name} than here" if there[name] else f"no operator {name}")
    return said


def sources_digest(module: str) -> str:
    """Return a digest of a module's source with all of the package around it; empty where it can't be found.

    What calls an operator's file into other files of its package decides its rows as much as the file. A module of no package
    is its file.
    """
    package = module if module in _OURS else module.rpartition(".")[0] or module
    try:
        found = find_spec(package)
    except (ImportError, ValueError):  # a package around it isn't there; a module that is no file's
        return ""
    if found is None:
        return ""
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    files = {file.relative_to(folder).as_posix(): file for folder in folders for file in folder.rglob("*.py")}
    if not files and found.origin and Path(found.origin).is_file():
        files = {module: Path(found.origin)}
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest() if files else ""
