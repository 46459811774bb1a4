"""Which files of a data set's repository one of its splits is made of, and reading just those.

`datasets` itself decides, over a folder that looks like the repository: its files' names, and its card with the other splits
left out. Fetches nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from caiflow.engine.errors import WrongValue, suggest

CARD = "README.md"
_PART = re.compile(r"(.*)-(\d{5,})-of-(\d{5,})")


class Part(NamedTuple):
    """One split of a data set, and what narrows it, as `datasets.load_dataset` has them."""

    split: str
    subset: str | None
    folder: str | None


def files_of(part: Part, names: Sequence[str], card: str, label: str) -> list[str]:
    """Return the files of a repository that hold a split; all of them where that can't be told from their names.

    Raises:
        WrongValue: it has no such split.
    """
    import datasets

    with _looking_like(dict.fromkeys(names), card, part) as folder:
        try:
            found = datasets.load_dataset_builder(str(folder), name=part.subset, data_dir=part.folder).config.data_files
        except Exception:  # an archive that would have to be looked into, say: reading tells what is wrong, if anything is
            return list(names)
        if not found:
            return list(names)
        if part.split not in found:
            raise WrongValue(f"{label}: it has no split {part.split!r}", suggest(part.split, map(str, found), "splits"))
        return [_own(path, folder, label) for path in found[part.split]]


def lacking_parts(names: Sequence[str]) -> int:
    """Return how many parts aren't among files of which each says how many there are: `train-00000-of-00003.parquet`."""
    parts: dict[tuple[str, int], set[int]] = {}
    for found in filter(None, map(_PART.match, names)):
        parts.setdefault((found[1], int(found[3])), set()).add(int(found[2]))
    return sum(number - len(here) for (_, number), here in parts.items())


def rows_of(part: Part, files: Mapping[str, Path], card: str, label: str) -> Iterator[Any]:
    """Yield the rows of a split from its files, by their names in the repository; of images and the like what tells them apart.

    Raises:
        ValueError: no such subset or split, or a file can't be read.
    """
    import datasets

    with _looking_like(files, card, part) as folder:
        try:
            builder = datasets.load_dataset_builder(str(folder), name=part.subset, data_dir=part.folder)
            for path in chain.from_iterable((builder.config.data_files or {}).values()):
                _own(path, folder, label)
            found = builder.as_streaming_dataset(split=part.split)
            features = found.features or {}
            unopened = datasets.Features({name: _unopened(feature) for name, feature in features.items()})
            media = [name for name, feature in features.items() if feature != unopened[name]]
            if not media:
                yield from found
                return
            yield from ({**row, **{name: _named(row[name]) for name in media}} for row in found.cast(unopened))
        except WrongValue:
            raise
        except (ValueError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
            raise ValueError(f"{label}: can't be loaded: {str(error).replace(str(folder), label)}") from error


def _unopened(feature: Any) -> Any:
    """Return a feature in which images and the like stay as they are stored; JSON, which is no file, is read all the same."""
    if isinstance(feature, dict):
        return {name: _unopened(inner) for name, inner in feature.items()}
    if hasattr(feature, "feature"):
        return replace(feature, feature=_unopened(feature.feature))
    is_file = getattr(feature, "decode", False) and type(feature).__name__ != "Json"  # which datasets 4.0 doesn't have
    return replace(feature, decode=False) if is_file else feature


def _named(value: Any) -> Any:
    """Return an image or the like as its file's name and a digest of its bytes; what holds some with these in their places."""
    if isinstance(value, list):
        return [*map(_named, value)]
    if not isinstance(value, dict):
        return value
    if value.keys() != {"bytes", "path"}:
        return {name: _named(inner) for name, inner in value.items()}
    content, path = value["bytes"], value["path"]  # the path leads to a folder that is gone soon
    return {"name": path and PurePosixPath(path).name, "sha256": content and hashlib.sha256(content).hexdigest()}


@contextmanager
def _looking_like(files: Mapping[str, Path | None], card: str, part: Part) -> Iterator[Path]:
    """Make a folder of a repository's files, empty or leading to those that are here, whose card knows the part alone."""
    with TemporaryDirectory(prefix="caiflow-hub-") as made:
        folder = Path(made).resolve()
        for name, path in files.items():
            if name == CARD or not _inside(name):
                continue
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve()) if path else place.touch()
        if card:
            (folder / CARD).write_text(_for_part(card, part), encoding="utf-8")
        yield folder


def _own(path: str, folder: Path, label: str) -> str:
    """Return a file's name in the folder.

    Raises:
        WrongValue: it isn't there: a data set's card could have any file of this machine read.
    """
    place = Path(os.path.normpath(path))
    if not place.is_relative_to(folder):
        raise WrongValue(f"{label}: its card names {path}, which isn't one of its files", "take another data set")
    return place.relative_to(folder).as_posix()


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _for_part(card: str, part: Part) -> str:
    """Return a card that names no files of other splits and subsets, which aren't there; as it is where it names none."""
    import yaml

    head = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    try:
        said: Any = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return card
    configs = (said.get("configs") or ()) if isinstance(said, Mapping) else ()
    if own := [config for config in configs if isinstance(config, dict) and config.get("config_name") == part.subset]:
        said["configs"] = configs = own
    for config in configs:
        entries = config.get("data_files") if isinstance(config, dict) else None
        if isinstance(entries, list) and (named := [entry for entry in entries if _names(entry, part.split)]):
            config["data_files"] = named
    return f"---\n{yaml.safe_dump(said, sort_keys=False)}---\n" if said else card


def _names(entry: Any, split: str) -> bool:
    return isinstance(entry, Mapping) and entry.get("split") == split
