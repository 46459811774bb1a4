"""Data sets on the hub as sources: their rows, and the commit that pins them.

Files come through the hub's own cache, so a split that is there of a pinned revision needs no network. Which files a commit has
is kept beside them, so that a split of which some are missing is never taken for whole.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.model_files import hub_cache
from caiflow.engine.store.disk import write_atomic
from caiflow.operators.formats.hub_files import CARD, Part, files_of, rows_of
from caiflow.operators.formats.opening import Line

_COMMIT = r"[0-9a-f]{40}"
_TOLD_FOR_S = 60.0
"""For how long what the hub says of a repository holds: for all steps of a plan, and not for ever in a notebook."""
_AT_ONCE = 8
Progress = Callable[[str], None]
"""Takes what is being done, in words."""


class _Told(NamedTuple):
    """What the hub said of a revision: its commit and its files, or why it said nothing."""

    at: float
    commit: str = ""
    names: tuple[str, ...] = ()
    error: Exception | None = None


_told: dict[tuple[str, ...], _Told] = {}


def _ask_hub(repo: str, revision: str | None) -> _Told:
    """Return what the hub says of a repository, asked once for all who want to know at about the same time."""
    about = (os.environ.get("HF_ENDPOINT", ""), str(hub_cache()), repo, revision or "")
    known = _told.get(about)
    if known is None or time.monotonic() - known.at > _TOLD_FOR_S:
        from huggingface_hub import HfApi

        try:
            info = HfApi().dataset_info(repo, revision=revision, timeout=20)
            names = tuple(sibling.rfilename for sibling in info.siblings or ())
            known = _Told(time.monotonic(), str(info.sha), names)
        except Exception as error:  # the hub's own errors, and those of whatever it sends requests with
            known = _Told(time.monotonic(), error=error)
        _told[about] = known
    return known


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
        told = _ask_hub(self.repo, self.revision)
        return (self._cached_commit(told.error), False) if told.error else (told.commit, True)

    def lines(self) -> Iterator[Line]:
        """Yield the rows of the split in order; its files are fetched into the hub's cache first.

        Raises:
            ValueError: no such repository, subset or split, or files of it aren't to be had.
        """
        files = self.fetch()
        for place, data in enumerate(rows_of(self._part, files, self._card(), self.label), 1):
            yield Line(place, data)

    def fetch(self, progress: Progress = lambda _: None) -> dict[str, Path]:
        """Bring the split's files into the hub's cache, those that aren't there; return where they are, by name.

        Raises:
            ValueError: no such subset or split, or files of it aren't to be had.
        """
        wanted = files_of(self._part, self._names, self._card(), self.label)
        found = {name: self._snapshot / name for name in wanted if (self._snapshot / name).is_file()}
        missing = [name for name in wanted if name not in found]
        if missing and not self._found[1]:
            hint = "fetch it while online"
            raise WrongValue(f"{self.label}: {len(missing)} of {len(wanted)} files aren't in the hub's cache", hint)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            coming = {pool.submit(self._download, name): name for name in missing}
            for done, future in enumerate(as_completed(coming)):
                progress(f"fetching {self.label}: {done + 1} of {len(missing)} files")
                found[coming[future]] = future.result()
        return {name: found[name] for name in wanted}

    def content(self) -> str:
        """Return what pins the rows: the data set and its commit."""
        return f"{self.label}@{self.commit}"

    def place(self, line: Line) -> str:
        """Return the data set and the row's number."""
        return f"{self.label}: row {line.place}"

    @property
    def _part(self) -> Part:
        return Part(self.split, self.subset, self.folder)

    @property
    def _snapshot(self) -> Path:
        return self._cached_folder / "snapshots" / self.commit

    @cached_property
    def _names(self) -> Sequence[str]:
        """The files of the commit: as the hub says, as it once said, or else those that the cache has.

        Raises:
            ValueError: nobody knows them.
        """
        listing = self._cached_folder / ".caiflow" / f"{self.commit}.json"
        if listing.is_file():
            names: list[str] = json.loads(listing.read_text(encoding="utf-8"))
            return names
        if self._found[1]:
            told = _ask_hub(self.repo, self.revision)
            if told.error is not None:
                raise ValueError(f"{self.repo}: can't be fetched from the hub: {told.error}") from told.error
            write_atomic(listing, json.dumps(told.names))
            return told.names
        here = [path.relative_to(self._snapshot).as_posix() for path in self._snapshot.rglob("*") if path.is_file()]
        if not here:
            raise WrongValue(f"{self.label}: commit {self.commit} isn't in the hub's cache", "fetch it while online")
        return sorted(here)

    def _card(self) -> str:
        if CARD not in self._names:
            return ""
        path = self._snapshot / CARD
        if not path.is_file() and self._found[1]:
            path = self._download(CARD)
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _download(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.repo, name, repo_type="dataset", revision=self.commit))
        except Exception as error:  # the hub's own errors, and those of whatever it sends requests with
            raise ValueError(f"{self.repo}: {name} can't be fetched from the hub: {error}") from error

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
