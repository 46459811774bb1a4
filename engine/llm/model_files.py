"""Where a model's files lie on this machine, and what they tell without being loaded: its settings and its layers' names.

Owns the bundled model and the hub's cache. Downloads nothing and imports no LLM library.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caiflow.engine.llm.files import adapter_base

BUNDLED = {"tiny": ("examples", "tiny", "model")}
COMMIT = re.compile(r"[0-9a-f]{40}")


def bundled_folder(name: str) -> Path:
    """Return the folder of a model that comes with the package."""
    return Path(__file__).parents[2].joinpath(*BUNDLED[name])


def hub_snapshot(repo: str, revision: str | None, kind: str = "models") -> Path | None:
    """Return the folder of a repository in the hub's local cache, or None where it isn't there."""
    home = os.environ.get("HF_HUB_CACHE") or os.path.join(
        os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"), "hub"
    )
    root = Path(home) / f"{kind}--{repo.replace('/', '--')}"
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
    folders = (folder for folder in (base_dir / source, Path(source).expanduser()) if folder.is_dir())
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
