"""Trackers that are told the curves of trainings and, at the end, a run's figures; their names are TRL's.

Owns where each writes: what its user's environment says, else a folder in the store's home for all runs together. Curves
are told by the libraries' own callbacks. Never ends a run by what a tracker doesn't like.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from caiflow.engine.errors import Finding
from caiflow.engine.machine import pip_command

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
FOLDER = "trackers"
"""In the store's home, beside the artifacts: a tracker's own page may change what is read, and artifacts never change."""
PROJECT = "caiflow"
TELLING = ("trl.extras.profiling", "trl.trainer.base_trainer", "trl.trainer.callbacks")
"""TRL's modules that import whatever trackers there are."""
_PLACES = (
    *("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "WANDB_PROJECT", "WANDB_MODE", "WANDB_SILENT", "MLFLOW_TRACKING_URI"),
    *("MLFLOW_EXPERIMENT_NAME", "MLFLOW_ALLOW_FILE_STORE", "TRACKIO_DIR"),
)
_USERS: Mapping[str, str] = {name: os.environ[name] for name in _PLACES if name in os.environ}
"""What the user's environment says: a worker trains several steps, of which each has places of its own."""


def missing(report_to: Sequence[Tracker]) -> Iterator[Finding]:
    """Yield the trackers whose library isn't installed."""
    for place, name in enumerate(report_to):
        if not find_spec(name):
            yield Finding(("report_to", place), f"`{name}` isn't installed", pip_command(name))


def prepare(report_to: Sequence[Tracker], run: str) -> dict[str, Any]:
    """Say where trackers write, and return the settings of a trainer that reports to them; call before it is made.

    `run` is what the trackers are to call it.
    """
    if not report_to:
        return {"report_to": "none"}
    from caiflow.engine.store.artifacts import default_home

    folder = default_home() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {**_places(folder, run), **_USERS}.items():
        os.environ[name] = value
    if "trackio" in report_to:
        _have_trackio_read_its_folder()
    for name in {"mlflow", "wandb"} & {*report_to}:
        _have_trl_know(name)
    apart = {"project": PROJECT, "trackio_static_space_id": False} if "trackio" in report_to else {}
    return {"report_to": list(report_to), "run_name": run, **apart}


def _have_trl_know(tracker: str) -> None:
    """Give TRL's modules a tracker's library, which they do without until a step reports to it."""
    for module in filter(None, map(sys.modules.get, TELLING)):
        vars(module)[tracker] = import_module(tracker)


def _have_trackio_read_its_folder() -> None:
    """Have trackio imported anew: it reads its folder as it is imported, which TRL may have done for an earlier step."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        del sys.modules[name]


def finish(report_to: Sequence[Tracker]) -> None:
    """Have W&B end its run; the others' callbacks do that by themselves."""
    if "wandb" in report_to:
        import wandb

        wandb.finish()


def _places(folder: Path, run: str) -> dict[str, str]:
    offline = {} if os.environ.get("WANDB_API_KEY") or _has_login() else {"WANDB_MODE": "offline"}
    return {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard" / re.sub(r"[^\w.@-]", "_", run)),
        "WANDB_DIR": str(folder),
        "WANDB_PROJECT": PROJECT,
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": (folder / "mlflow").absolute().as_uri(),
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(folder / "trackio"),
        **offline,
    }


def report_figures(report_to: Sequence[Tracker], figures: Mapping[str, float], run: str) -> Iterator[str]:
    """Tell trackers the figures of a whole run, as one of their runs; yield what went wrong, which ends no run of ours.

    The environment is as before afterwards: workers of a later run in this process would take it for the user's.
    """
    before = {name: os.environ.get(name) for name in _PLACES}
    prepare(report_to, run)
    for name in report_to:
        try:
            _TOLD[name](figures, run)
        except Exception as error:  # whatever a tracker's library raises
            yield f"{name} wasn't told the run's figures: {' '.join(str(error).split()) or type(error).__name__}"
    for variable, value in before.items():
        os.environ.pop(variable, None)
        os.environ.update({} if value is None else {variable: value})


def _tell_tensorboard(figures: Mapping[str, float], _run: str) -> None:
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(os.environ["TENSORBOARD_LOGGING_DIR"])
    values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
    writer.add_event(Event(wall_time=time.time(), step=0, summary=summary_pb2.Summary(value=values)))
    writer.close()


def _tell_mlflow(figures: Mapping[str, float], run: str) -> None:
    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    with mlflow.start_run(run_name=run):
        mlflow.log_metrics({re.sub(r"[^\w\-. :/]", "_", name): value for name, value in figures.items()})


def _tell_wandb(figures: Mapping[str, float], run: str) -> None:
    import wandb

    with wandb.init(project=os.environ["WANDB_PROJECT"], name=run) as told:
        told.log(dict(figures))


def _tell_trackio(figures: Mapping[str, float], run: str) -> None:
    import trackio

    trackio.init(project=PROJECT, name=run)
    trackio.log(dict(figures))
    trackio.finish()


_TOLD: Mapping[Tracker, Callable[[Mapping[str, float], str], None]] = {
    "tensorboard": _tell_tensorboard, "mlflow": _tell_mlflow, "wandb": _tell_wandb, "trackio": _tell_trackio,
}  # fmt: skip


def _has_login() -> bool:
    """Return whether the user has told wandb's command who they are."""
    netrc = Path.home() / ".netrc"
    return netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")
