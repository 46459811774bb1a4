"""The order in which processes are made ready. Its stand-in begins none: from outside only the time that is saved shows."""

from collections.abc import Collection, Sequence
from pathlib import Path

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.plan.components import Resolver
from caiflow.engine.run.head_start import HeadStart
from caiflow.engine.run.on_ray.actors import RayLink
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.engines import Engines
from caiflow.engine.run.on_ray.gangs import Gang, Room
from caiflow.engine.run.units import TableUnit, Unit
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store

ROOT = Path(__file__).parents[3]


class Noting(Cluster):
    """Notes what is to be begun."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[str] = []
        self.engines = NotingEngines(self.machines, self._waits)
        self.engines.noted = self.noted

    def engine(
        self, _source: ModelSource, label: str, _client: str, _beside: Sequence[str] = (), *, load: bool = True
    ) -> list[RayLink] | None:
        """Note a model to load."""
        self.noted.append(f"{label} loads: {load}")
        return []

    def warm(self, pool: str, _modules: Sequence[str]) -> None:
        """Note a worker to import."""
        self.noted.append(pool)


class NotingEngines(Engines):
    """Notes engines to come."""

    noted: list[str]
    loads: Collection[str] = ()

    def loading(self, names: Collection[str]) -> bool:
        """Tell whether one of them loads."""
        return not set(self.loads).isdisjoint(names)

    def expect(self, number: int, _modules: Sequence[str]) -> None:
        """Note them."""
        self.noted.append(f"engines: {number}")


def test_nothing_imports_beside_the_first_rows_but_what_follows_them(tmp_path: Path) -> None:
    cluster, spec = Noting(), load_spec(ROOT / "specs" / "quickstart.yaml")
    start = HeadStart(cluster, lambda: list(spec.steps.values()))
    start.load_first_engine(Resolver(spec, Store(tmp_path)), "client")
    told = [len(cluster.noted)]
    for happens in (start.on_engine_ready, start.on_engine_ready, start.on_training, start.on_training, start.on_training):
        happens()
        told.append(len(cluster.noted))
    assert cluster.noted == ["base loads: True", "train", "engines: 1", "engines: 1"]
    assert told == [1, 2, 2, 3, 4, 4]


class Seat(Gang):
    """A process that begins what it is given, and does nothing."""

    def __init__(self) -> None:
        self.actors = []

    def begin(self, _unit: Unit) -> None:
        """Begin nothing."""


class Seating(Noting):
    """Notes the processes that are begun for units."""

    def _gang(self, pool: str, _room: Room, _lost: Collection[str] = ()) -> Gang:
        self.noted.append(pool)
        return Seat()


def test_rows_wait_for_the_process_of_a_table_while_their_engine_loads() -> None:
    load = load_spec(ROOT / "specs" / "quickstart.yaml").operators["red_team"]
    cluster, unit = Seating(), TableUnit("red_team", load, {}, {}, Path())
    cluster.engines.loads = ["base"]
    assert cluster.submit(unit, "flow", engines=["base"]), "where nothing else runs"
    assert cluster.submit(unit, "table")
    assert not cluster.submit(unit, "flow", engines=["base"])
    assert cluster.submit(unit, "flow", engines=["served"])
    cluster.engines.loads = ()
    assert cluster.submit(unit, "flow", engines=["base"])
    assert cluster.noted == ["flow", "table", "flow", "flow"]
