"""Test processes share the cores: each takes its part of the threads, none spins while it waits. One small model for all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from support import figures
from support.chat_templates import SHAPES, Shape
from support.kills import end_started
from support.once import of_session
from support.source_tree import ROOT

if TYPE_CHECKING:
    from caiflow.engine.llm.base import ModelSource
    from caiflow.engine.llm.render import Renderer
    from caiflow.engine.run.on_ray.cluster import Cluster

_SHARE = os.cpu_count() or 1
if hasattr(os, "sched_getaffinity"):
    _SHARE = len(os.sched_getaffinity(0))
_SHARE //= int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _SHARE)))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
# vLLM imports Ray into the process of its tests; a run in that process starts a cluster only where Ray knew a token by then.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # a Ray of this machine alone is looked for where it listens, on loopback
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# Ray's workers would give way to every other test at once: engines took minutes to load beside them.
os.environ.setdefault("RAY_worker_niceness", "0")
# How fast an example is found or run is the machine's affair.
_ALIKE = bool(os.environ.get("CI"))  # what fails there is found again; elsewhere each run tries others
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=_ALIKE)
settings.load_profile("any machine")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs vLLM on systems that it has no build for."""
    if item.get_closest_marker("vllm") and not find_spec("vllm"):
        pytest.skip("vLLM is not installed")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Leave no run behind, whatever came of its test."""
    end_started()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the trials of clusters measured, where any ran, and leave it in build/."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    measured = figures.found(getattr(report, "user_properties", ()) for report in reports)
    if measured:
        figures.keep(measured, ROOT / "build" / "cluster.json")
        terminalreporter.section("clusters: what was tried and measured")
        for line in figures.lines(measured):
            terminalreporter.write_line(line)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """What a trial notes its figures with: a row of the table in `support/figures.py`, and what was measured."""

    def note(row: str, measured: str) -> None:
        assert row in figures.ROWS
        record_property(figures.MARK, [row, measured])

    return note


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A random Llama on disk."""
    from support.small_models import small_model

    return small_model(Path(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray that the session's runs share; for tests to which it's nothing how Ray starts and ends."""
    from support.shared_ray import shared_ray

    with shared_ray(of_session(tmp_path_factory)) as address:
        yield address


@pytest.fixture
def cluster(ray_address: str) -> Iterator[Cluster]:
    """That Ray as the runner holds it, joined and left by each test."""
    from caiflow.engine.run.on_ray.cluster import Cluster

    joined = Cluster(ray_address)
    joined.start()
    yield joined
    joined.close()


@pytest.fixture(scope="module", params=sorted(SHAPES))
def shape(request: pytest.FixtureRequest) -> Shape:
    """A chat template of each shape that is about."""
    return SHAPES[request.param]


@pytest.fixture(scope="module")
def renderer(shape: Shape, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    """What lays conversations out for a small model with that template."""
    from caiflow.engine.llm.render import Renderer
    from caiflow.engine.training.models import load_tokenizer
    from support.chat_templates import model_with

    return Renderer(load_tokenizer(model_with(tmp_path_factory.mktemp("model"), shape)))
