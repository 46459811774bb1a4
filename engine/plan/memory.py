"""What each training step needs of a device's memory, held against what there is, and what would fit where it doesn't.

Reads the settings of models that are on this machine, and never loads one. The formula is `training.memory`'s.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.errors import EngineError, WrongValue
from caiflow.engine.llm.gguf import read_as, unpacked_name
from caiflow.engine.llm.model_files import Shape, gguf_file, model_folder, model_settings, shape_of
from caiflow.engine.machine import gpus, size
from caiflow.engine.operator import Resources
from caiflow.engine.store.file_digests import file_digest
from caiflow.engine.training.memory import Need, Setting, need
from caiflow.engine.training.operator import TrainingOperator
from caiflow.engine.training.params import Lora, TrainingParams

if TYPE_CHECKING:
    from caiflow.engine.spec.grammar import Spec
    from caiflow.engine.store.artifacts import Store

_DEVICES = re.compile(r"(\d+)x(\d+(?:\.\d+)?)GB")
FREE = 0.95
"""The part of a GPU's memory that a training can have: the driver, the context and fragments take the rest."""
UNKNOWN = "its model's settings aren't on this machine, or not of a kind whose weights can be counted"


class Devices(NamedTuple):
    """So many devices of this much memory each: GPUs, or a CPU, whose memory all workers share."""

    number: int
    size_bytes: int
    gpu: bool


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What one training needs of each device. `need` is None where its model's sizes aren't known; `unchecked` says why.

    `would_fit` has, where it doesn't fit, what would: fields to set, each with what is then needed.
    """

    step: str
    devices: Devices
    need: Need | None = None
    fits: bool | None = None
    would_fit: tuple[str, ...] = ()
    unchecked: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the form that `plan --json` has; all sizes are bytes."""
        parts = self.need._asdict() if self.need else {}
        told_of = {name: getattr(self, name) for name in ("step", "fits", "unchecked")}
        return {**told_of, **parts, "would_fit": list(self.would_fit), "devices": self.devices._asdict()}


def parse_devices(text: str) -> Devices:
    """Return the GPUs that a text such as `8x80GB` means.

    Raises:
        WrongValue: it means none.
    """
    if not (found := _DEVICES.fullmatch(text)) or not int(found[1]):
        raise WrongValue(f"no GPUs are meant by {text!r}", "write how many, and the memory of each: 8x80GB")
    return Devices(int(found[1]), int(float(found[2]) * 1e9), True)


def devices_here() -> Devices:
    """Return this machine's GPUs, or its main memory where it has none."""
    if gpus() and (found := _gpu_sizes()):
        return Devices(len(found), min(found), True)
    return Devices(1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), False)


def _gpu_sizes() -> list[int]:
    """Return the memory of each GPU in bytes, as its driver says; none where that can't be asked."""
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout
        return [int(line) << 20 for line in said.split("\n") if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def memory_of(spec: Spec, store: Store, devices: Devices) -> Iterator[StepMemory]:
    """Yield what each training of a spec needs, in the order of the file."""
    shapes = _Shapes(spec, store)
    for name, operator in spec.operators.items():
        if isinstance(operator, TrainingOperator):
            yield _of_step(name, operator, shapes, devices)


class _Shapes:
    """The sizes of the models that a spec names; a trained model has those of the one it came from."""

    def __init__(self, spec: Spec, store: Store) -> None:
        self._spec, self._store = spec, store

    def __getitem__(self, name: str) -> Shape | None:
        if name in self._spec.models:
            return shape_of(self._settings(name))
        params: Any = self._spec.steps[name].params
        scratch = getattr(params, "scratch", None)
        return shape_of(scratch.settings()) if scratch else self[params.model]

    def _settings(self, name: str) -> Mapping[str, Any]:
        entry, base_dir = self._spec.models[name], self._spec.base_dir
        if entry.served:
            return {}
        folder = model_folder(entry.source, entry.revision, base_dir)
        if folder is None and (file := gguf_file(entry.source, base_dir)):
            with suppress(EngineError):  # a file that can't be read: looking for the model tells
                folder = self._store.path(unpacked_name(read_as(file, file_digest(file, self._store.files))))
        return model_settings(folder) if folder else {}

    def dtype(self, name: str) -> str:
        """Return the number format that the entry behind a model asks for."""
        while name not in self._spec.models:
            params: Any = self._spec.steps[name].params
            if not getattr(params, "model", None):
                return "auto"
            name = params.model
        return self._spec.models[name].dtype


def _of_step(name: str, operator: TrainingOperator[Any], shapes: _Shapes, devices: Devices) -> StepMemory:
    needed = _need(name, operator.params, operator, shapes, devices)
    if needed is None:
        return StepMemory(name, devices, unchecked=UNKNOWN)
    fits = _fits(needed, operator.params, devices)
    tried = () if fits else tuple(_what_would(name, operator, shapes, devices))
    return StepMemory(name, devices, needed, fits, tried)


def _need(name: str, params: TrainingParams, operator: TrainingOperator[Any], shapes: _Shapes, devices: Devices) -> Need | None:
    shape = shapes[name]
    asked = type(operator)(params, operator.context)
    read = [(shapes[one.model], one) for one in asked.read_beside()]
    if shape is None or any(other is None for other, _ in read):
        return None
    known = [(other, one) for other, one in read if other is not None]
    return need(shape, params, asked.at_once(), known, Setting(devices.gpu, shapes.dtype(name)))


def _fits(needed: Need, params: TrainingParams, devices: Devices) -> bool:
    if devices.gpu:
        return needed.peak <= devices.size_bytes * FREE
    return needed.peak * params.resources.workers <= devices.size_bytes * FREE


def _what_would(name: str, operator: TrainingOperator[Any], shapes: _Shapes, devices: Devices) -> Iterator[str]:
    """Yield the changes of a step under which it fits: of each way the mildest one."""
    for way in _ways(operator.params, devices):
        for changes in way:
            params = operator.params.model_copy(update=changes)
            if _undivided(operator, params):
                break
            needed = _need(name, params, operator, shapes, devices)
            if needed is not None and _fits(needed, params, devices):
                yield f"{_written(changes)} ({size(needed.peak)})"
                break


def _undivided(operator: TrainingOperator[Any], params: TrainingParams) -> bool:
    """Say whether an operator is asked to divide its model and can't."""
    return params.fsdp and any(found.path[:1] == ("fsdp",) for found in type(operator)(params, operator.context).check())


def _ways(params: TrainingParams, devices: Devices) -> Iterator[list[dict[str, Any]]]:
    """Yield the ways to less memory, each as changes of fields that take less and less."""
    again = {} if params.gradient_checkpointing else {"gradient_checkpointing": True}
    rows = params.per_device_train_batch_size * params.gradient_accumulation_steps
    short = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows, "per_device_eval_batch_size": 1}
    short = short if params.per_device_train_batch_size > 1 else {}
    yield [found for found in (again, short, {**again, **short}) if found]
    if (divided := _divided(params, devices)) is not None:
        yield _with(divided, again, short)
    if params.lora is None:
        yield _with({"optim": "adamw_8bit"}, again, short)
        yield _with({"lora": Lora()}, again, short)
    if params.lora is None or params.lora.quantization is None:
        yield _with({"lora": (params.lora or Lora()).model_copy(update={"quantization": "4bit"})}, again, short)


def _divided(params: TrainingParams, devices: Devices) -> dict[str, Any] | None:
    """Return the changes that divide the model among all GPUs; None where it can't be, or is."""
    if params.division or not devices.gpu or devices.number == 1:
        return None
    if params.resources.workers > 1:
        return {"fsdp": True}
    return {"fsdp": True, "resources": params.resources.model_copy(update={"workers": devices.number})}


def _with(change: dict[str, Any], *others: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a change by itself, then with one after another of the others."""
    found = [change]
    for other in others:
        found.append({**found[-1], **other})
    return found


def _written(changes: Mapping[str, Any]) -> str:
    """Return changes as a spec has them."""
    return ", ".join(f"{field}: {_value(value)}" for field, value in changes.items())


def _value(value: Any) -> str:
    if isinstance(value, Resources):
        return f"{{workers: {value.workers}}}"
    if isinstance(value, Lora):
        return "{quantization: 4bit}" if value.quantization else f"{{rank: {value.rank}}}"
    return str(value).lower()
