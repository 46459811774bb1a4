"""Data sets on the hub as sources: their rows, and the commit that pins them.

Files come through the hub's own cache, so a pinned revision that is there needs no network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.model_files import hub_cache
from caiflow.operators.formats.opening import Line

_COMMIT = r"[0-9a-f]{40}"


@dataclass(frozen=True)
class HubSource:
    """One split of a data set on the hub; `folder` and `subset` narrow it as `datasets.load_dataset` does."""

    repo: str
    revision: str | None = None
    split: str = "train"
    subset: str | None = None
    folder: str | None = None

    @property
    def label(self) -> str:
        """The data set in words: repository, subset, folder and split, not the commit."""
        return ":".join(part for part in (self.repo, self.subset, self.folder, self.split) if part)

    @property
    def commit(self) -> str:
        """The commit that the revision stands for now; read from the hub's cache where offline.

        Raises:
            ValueError: neither the hub nor its cache knows the repository or revision.
        """
        return self._found[0]

    @cached_property
    def _found(self) -> tuple[str, bool]:
        """The commit, and whether the hub may be asked for its files: not where it was out of reach just now."""
        if self.revision and re.fullmatch(_COMMIT, self.revision):
            return self.revision, not _offline()
        if _offline():
            return self._cached_commit(None), False
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(self.repo, revision=self.revision, timeout=20).sha), True
        except Exception as error:  # the hub's own errors, and those of whatever it sends requests with
            return self._cached_commit(error), False

    def lines(self) -> Iterator[Line]:
        """Yield the rows of the split in order; the files are fetched into the hub's cache first.

        Raises:
            ValueError: no such repository, subset or split.
        """
        import datasets

        snapshot = self._snapshot()
        try:
            rows = datasets.load_dataset(
                str(snapshot), name=self.subset, data_dir=self.folder, split=self.split, streaming=True
            )
        except (ValueError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
            raise ValueError(f"{self.label}: can't be loaded: {error}") from error
        for place, data in enumerate(rows, 1):
            yield Line(place, data)

    def content(self) -> str:
        """Return what pins the rows: the data set and its commit."""
        return f"{self.label}@{self.commit}"

    def place(self, line: Line) -> str:
        """Return the data set and the row's number."""
        return f"{self.label}: row {line.place}"

    def _snapshot(self) -> Path:
        from huggingface_hub import snapshot_download

        patterns = [f"{self.folder.strip('/')}/*", "README.md"] if self.folder else None
        commit, reachable = self._found
        try:
            found = snapshot_download(
                self.repo, repo_type="dataset", revision=commit, allow_patterns=patterns, local_files_only=not reachable
            )
            return Path(found)
        except Exception as error:  # the hub's own errors, and those of whatever it sends requests with
            raise ValueError(f"{self.repo}: can't be fetched from the hub: {error}") from error

    @property
    def within_reach(self) -> bool:
        """Whether the revision is in the hub's cache, or the hub may be asked."""
        try:
            return not _offline() or bool(self.commit and self._cached_folder.is_dir())
        except ValueError:
            return False

    @property
    def _cached_folder(self) -> Path:
        return hub_cache() / f"datasets--{self.repo.replace('/', '--')}"

    def _cached_commit(self, cause: Exception | None) -> str:
        ref = self._cached_folder / "refs" / (self.revision or "main")
        try:
            return ref.read_text().strip()
        except OSError:
            named = f"data set {self.repo}" + (f" with revision {self.revision!r}" if self.revision else "")
            why = f"the hub says: {str(cause).strip().splitlines()[0]}" if cause and str(cause).strip() else "offline"
            hint = "check the name, or fetch it while online"
            raise WrongValue(f"no {named} in the hub's cache, nor to be had ({why})", hint) from cause


def _offline() -> bool:
    flags = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(flag.upper() in ("1", "ON", "YES", "TRUE") for flag in flags)
