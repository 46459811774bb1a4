"""A training's curve in each tracker, read back by the tracker's own library, and the run that goes on without one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.display import trackers
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import StepContext
from caiflow.operators.sft import Sft, SftParams
from support.small_models import job, lessons

EVERY = ("tensorboard", "mlflow", "wandb", "trackio")


@pytest.fixture(scope="module")
def trained(model: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two steps of training left that reported to every tracker; the user's environment says nothing of them."""
    import trackio  # noqa: F401  # as TRL's trainers of RL do, before anything says where it writes

    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        for name in trackers._PLACES:
            patch.delenv(name, raising=False)
        patch.setattr(trackers, "_USERS", {})
        for name in trackers._PLACES:
            patch.setitem(os.environ, name, "")  # put back afterwards
        patch.setenv("CAIFLOW_HOME", str(folder / "home"))
        done = job(folder, {"rows": lessons()}, base=model)
        done.step = "sl_cai"
        fields = {"input": "rows", "model": "base", "max_steps": 3, "logging_steps": 1, "report_to": EVERY}
        Sft(SftParams.model_validate(fields), StepContext()).train(done)
    return folder


def losses(folder: Path) -> list[float]:
    points = [json.loads(line) for line in (folder / "out" / "_history.jsonl").read_text().splitlines()]
    return [point["loss"] for point in points if "loss" in point]


def test_tensorboard_reads_the_curve(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "home" / "trackers" / "tensorboard" / "sl_cai_work"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses(trained))


def test_mlflow_reads_the_curve(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient((trained / "home" / "trackers" / "mlflow").as_uri())
    (experiment,) = [found for found in client.search_experiments() if found.name == "caiflow"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "sl_cai work"
    assert run.info.status == "FINISHED"
    found = [metric.value for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert found == pytest.approx(losses(trained))


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a run that W&B keeps offline: LevelDB's log format behind seven bytes."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_reads_the_curve(trained: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    (file,) = (trained / "home" / "trackers").glob("wandb/offline-run-*/run-*.wandb")
    found: list[float] = []
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        found += [float(items["train/loss"])] if "train/loss" in items else []
    assert found == pytest.approx(losses(trained))


def test_trackio_reads_the_curve(trained: Path) -> None:
    import sqlite3

    (file,) = (trained / "home" / "trackers" / "trackio").glob("caiflow*.db")
    rows = sqlite3.connect(file).execute("select metrics from metrics order by step").fetchall()
    values: list[Any] = [json.loads(row[0]) for row in rows]
    assert [value["train/loss"] for value in values if "train/loss" in value] == pytest.approx(losses(trained))


def test_a_model_has_nothing_of_the_trackers(trained: Path) -> None:
    assert not [path for path in (trained / "out").rglob("*") if "track" in path.name or "events" in path.name]


FIGURES = {"scores/models.rl.harmful.rate": 0.25, "scores/models.rl.harmful.rate.low": 0.125}


def test_the_figures_of_a_run_are_in_every_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in trackers._PLACES:
        monkeypatch.setenv(name, "kept for afterwards")
    monkeypatch.setattr(trackers, "_USERS", {})
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path))
    assert list(trackers.report_figures(["tensorboard", "mlflow"], FIGURES, "cai 1")) == []
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard" / "cai_1"))
    events.Reload()
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == FIGURES
    client = MlflowClient((tmp_path / "trackers" / "mlflow").as_uri())
    (experiment,) = [found for found in client.search_experiments() if found.name == "caiflow"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.data.metrics) == ("cai 1", FIGURES)
    assert {os.environ[name] for name in trackers._PLACES} == {"kept for afterwards"}, (
        "a later run's workers see the user's own"
    )


def test_a_tracker_that_fails_is_told_of_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in trackers._PLACES:
        monkeypatch.setenv(name, "kept for afterwards")
    monkeypatch.setattr(trackers, "_USERS", {"MLFLOW_TRACKING_URI": "nosuch://place"})
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path))
    (said,) = trackers.report_figures(["mlflow"], FIGURES, "cai 1")
    assert said.startswith("mlflow wasn't told the run's figures: ")


def test_the_users_places_go_first_and_each_step_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in trackers._PLACES:
        monkeypatch.setenv(name, "kept for afterwards")
    monkeypatch.setattr(trackers, "_USERS", {"MLFLOW_TRACKING_URI": "http://tracking.example"})
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path))
    for step in ("one", "two"):
        settings = trackers.prepare(["mlflow", "tensorboard"], step)
        assert settings == {"report_to": ["mlflow", "tensorboard"], "run_name": step}
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://tracking.example"
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "trackers" / "tensorboard" / step)


def test_without_trackers_nothing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path))
    assert trackers.prepare([], "one") == {"report_to": "none"}
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_found_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())  # all are in the test's own
    fields = {"input": "rows", "model": "base", "report_to": ["mlflow", "wandb"]}
    (found,) = Sft(SftParams.model_validate(fields), StepContext()).check()
    assert found.path == ("report_to", 1)
    assert "`wandb` isn't installed" in found.message
    assert found.hint.startswith("pip install ")
    assert "wandb" in found.hint
