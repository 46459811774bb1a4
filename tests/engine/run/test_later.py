"""Engines that load only for the first call that isn't in the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Answer, Completion, LinkLost, ModelSource, Request
from caiflow.engine.llm.client import EngineClient
from caiflow.engine.plan.components import Resolver
from caiflow.engine.run.later import LinkLater, answered_before, awaited, loading, tell_openings
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from support.runs_without_ray import AskedLink, carried_out, carry_out, write_spec

SOURCE = ModelSource("m", "m", options={"engine_args": {"max_num_seqs": 4}})


@dataclass
class LoadedLink(AskedLink):
    """A link to an engine that has to load, and can't where there is an `error`."""

    error: Exception | None = None
    loaded: int = 0
    held: Callable[[], bool] = bool

    async def open(self) -> None:
        """Load."""
        self.loaded += 1
        await asyncio.sleep(0.01)
        assert self.held(), "no step's work"
        if self.error is not None:
            raise self.error


def asked(link: LoadedLink, number: int) -> tuple[list[Answer], list[Any], int]:
    """Return a client's answers, what was told, and its capacity beforehand."""
    told: list[Any] = []

    async def answers() -> tuple[list[Answer], int]:
        links = {"base": [LinkLater(link, SOURCE)]}
        link.held = partial(loading, links)
        tell_openings(links, told.append)
        assert awaited({**links, "other": [link]}) == ["other"]
        async with EngineClient(links["base"]) as client:
            capacity = client.capacity
            found = await asyncio.gather(*(client.ask(Request(f"word {n}")) for n in range(number)))
        assert not loading(links)
        return found, capacity

    return (found := asyncio.run(answers()))[0], told, found[1]


def test_an_engine_that_is_asked_nothing_does_not_load() -> None:
    link = LoadedLink()
    assert asked(link, 0) == ([], [], 4)
    assert link.loaded == 0


def test_the_first_request_loads_it_once_and_says_so() -> None:
    link = LoadedLink()
    answers, told, _ = asked(link, 30)
    assert all(isinstance(answer, Completion) for answer in answers)
    assert (link.loaded, len(link.answered)) == (1, 30)
    assert told == [{"event": "engine_wanted", "model": "base"}]


def test_one_that_cannot_load_is_every_requests_error_and_a_lost_one_is_begun_again() -> None:
    error = EngineError("engine: no memory for it", kind="load")
    assert asked(LoadedLink(error=error), 3)[0] == [error] * 3
    lost = LoadedLink(error=LinkLost("its process is gone"))
    assert all(isinstance(answer, Completion) for answer in asked(lost, 3)[0])


def test_a_chain_whose_first_rows_are_answered_needs_no_engine_yet(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")

    def known(principles: list[str]) -> set[str]:
        spec = write_spec(tmp_path, ["One?", "Two?"], principles)
        text = spec.read_text().replace('{source: served, base_url: "http://127.0.0.1:9/v1"}', "{source: tiny}")
        spec.write_text(text)
        resolver = Resolver(load_spec(spec), store)
        resolver.settle(resolver.spec.steps["rows"])
        steps = [found for step in resolver.order if (found := resolver.flow_step(step))]
        return answered_before(steps, resolver.artifacts["rows"].path, store.ledger_dir)

    spec = write_spec(tmp_path, ["One?", "Two?"], ["Be kind."])
    served, _ = carried_out(spec, store, AskedLink())
    steps = [found for step in served.order if (found := served.flow_step(step))]
    assert answered_before(steps, served.artifacts["rows"].path, store.ledger_dir) == set(), "a server loads nothing here"
    assert known(["Be kind."]) == set(), "another model has answered"
    carry_out(spec, store, AskedLink())
    assert known(["Be kind."]) == {"m"}
    assert known(["Be brief."]) == set()
