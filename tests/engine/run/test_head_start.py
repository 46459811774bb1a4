"""The order in which processes are made ready. Its stand-in begins none: from outside only the time that is saved shows."""

from collections.abc import Sequence
from pathlib import Path

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.plan.components import Resolver
from caiflow.engine.run.head_start import HeadStart
from caiflow.engine.run.on_ray.actors import RayLink
from caiflow.engine.run.on_ray.cluster import Cluster
from caiflow.engine.run.on_ray.engines import Engines
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
