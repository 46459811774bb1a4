"""Data sets on the hub as sources: their rows, and the commit that pins them.

Files come through the hub's own cache, so a split that is there of a pinned revision needs no network. Which files a commit has
is kept beside them, so that a split of which some are missing is never taken for whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from caiflow.engine.errors import Finding, UnreachableError, WrongValue
from caiflow.engine.llm.hub import ask_hub, offline
from caiflow.engine.llm.model_files import hub_cache, hub_snapshot
from caiflow.engine.store.disk import write_atomic
from caiflow.operators.formats.hub.splits import CARD, Part, files_of, lacking_parts, rows_of
from caiflow.operators.formats.opening import Line

_COMMIT = r"[0-9a-f]{40}"
_AT_ONCE = 8
Progress = Callable[[str], None]
"""Takes what is being done, in words."""


@dataclass(frozen=True)
class HubSource:
    """One split of a data set on the hub; `folder` and `subset` narrow it as `datasets.load_dataset` does."""

    repo: str
    revision: str | None = None
    split: str = "train"
    subset: str | None = None
    folder: str | None = None
    file: str | None = None
    """The one file that the rows are in, where the repository's other files aren't parts of a split."""

    @property
    def label(self) -> str:
        """The data set in words: repository, subset, folder, file and split, not the commit."""
        return ":".join(part for part in (self.repo, self.subset, self.folder, self.file, self.split) if part)

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
            return self.revision, not offline("dataset")
        try:
            return ask_hub(self.repo, self.revision, "dataset").commit, True
        except ValueError as error:
            return self._cached_commit(error), False

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
        if not self._known[1] and (lacking := lacking_parts(wanted)):
            told = f"{self.label}: {lacking} parts of its files aren't in the hub's cache, as the names of the others tell"
            raise WrongValue(told, "fetch it while online")
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
        self._remember_commit()
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
        """The files of the commit that matter: all of them, without the card where one is named.

        Raises:
            ValueError: nobody knows them.
        """
        return [name for name in self._known[0] if self.file in (None, name)]

    @cached_property
    def _known(self) -> tuple[Sequence[str], bool]:
        """The files of the commit, and whether these are all: as the hub says, or once said, or those that the cache has."""
        if self._listing.is_file():
            return json.loads(self._listing.read_text(encoding="utf-8")), True
        here = sorted(path.relative_to(self._snapshot).as_posix() for path in self._snapshot.rglob("*") if path.is_file())
        if self._found[1]:
            try:
                return self._told(), True
            except ValueError as error:
                if not here or not isinstance(error, UnreachableError):
                    raise ValueError(f"{self.repo}: can't be fetched: {error}") from error
        if not here:
            raise WrongValue(f"{self.label}: commit {self.commit} isn't in the hub's cache", "fetch it while online")
        return here, False

    def _told(self) -> Sequence[str]:
        """Return what the hub says are the commit's files, and keep it; the revision may stand for another one by now."""
        told = ask_hub(self.repo, self.revision, "dataset")
        if told.commit != self.commit:
            told = ask_hub(self.repo, self.commit, "dataset")
        with suppress(OSError):  # a cache that can only be read serves all the same
            write_atomic(self._listing, json.dumps(told.names))
        return told.names

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

    def remarks(self) -> Iterator[Finding]:
        """Yield that the revision isn't in the hub's cache, and mayn't be fetched. Asks nobody."""
        if offline("dataset") and hub_snapshot(self.repo, self.revision, "datasets") is None:
            told = f"not checked: no file {self.repo}, and no such data set in the hub's cache while offline"
            yield Finding(("source",), told, "check the name, or fetch it while online")

    @property
    def _cached_folder(self) -> Path:
        return hub_cache() / f"datasets--{self.repo.replace('/', '--')}"

    @property
    def _listing(self) -> Path:
        """Where the names of the commit's files are kept, once the hub has said them."""
        return self._cached_folder / ".caiflow" / f"{self.commit}.json"

    def _remember_commit(self) -> None:
        """Keep what the revision stood for, as the hub's client does where it isn't given a commit: offline it is looked up."""
        if self._found[1] and self.revision != self.commit:
            with suppress(OSError):
                write_atomic(self._cached_folder / "refs" / (self.revision or "main"), self.commit)

    def _cached_commit(self, cause: ValueError) -> str:
        ref = self._cached_folder / "refs" / (self.revision or "main")
        try:
            return ref.read_text().strip()
        except OSError:
            named = f"data set {self.repo}" + (f" with revision {self.revision!r}" if self.revision else "")
            told = f"no {named} in the hub's cache, nor to be had ({cause})"
            kind = UnreachableError if isinstance(cause, UnreachableError) else WrongValue
            raise kind(told, "check the name, or fetch it while online") from cause
