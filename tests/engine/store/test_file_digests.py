"""The digests of files and folders, and their memory."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.store.file_digests import FileCache, file_digest, folder_manifest


@pytest.fixture
def remembers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caiflow.engine.store.file_digests._RACY_NS", -1)


@pytest.mark.usefixtures("remembers_at_once")
def test_a_file_is_hashed_once_while_it_stays_as_it_is(tmp_path: Path) -> None:
    file, cache = tmp_path / "data.jsonl", FileCache(tmp_path / "home" / "files.sqlite")
    file.write_text("one")
    first = file_digest(file, cache)
    with sqlite3.connect(cache.path) as database:
        database.execute("UPDATE files SET sha256 = 'remembered'")
    assert file_digest(file, cache) == "remembered"
    file.write_text("two")
    second = file_digest(file, cache)
    assert second == file_digest(file) != first


@pytest.mark.usefixtures("remembers_at_once")
def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    file, cache = tmp_path / "data", FileCache(tmp_path / "files.sqlite")
    file.write_text("one")
    before = file.stat()
    first = file_digest(file, cache)
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # a file system's clock may tick seldom
        time.sleep(0.02)
        file.write_text("two")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_digest(file, cache) != first


def test_a_file_that_may_still_change_is_not_remembered(tmp_path: Path) -> None:
    file, cache = tmp_path / "data", FileCache(tmp_path / "files.sqlite")
    file.write_text("one")
    file_digest(file, cache)
    assert cache.get(file.stat()) is None


def test_a_cache_that_cannot_be_used_costs_time_only(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("one")
    (tmp_path / "broken.sqlite").write_text("no database" * 100)
    assert file_digest(file, FileCache(tmp_path / "broken.sqlite")) == file_digest(file)
    assert file_digest(file, FileCache(Path("/proc/none/files.sqlite"))) == file_digest(file)


def test_many_processes_share_the_cache(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}").write_text(str(number))
    code = (
        "import sys; from pathlib import Path; from caiflow.engine.store import file_digests as files; files._RACY_NS = -1\n"
        "cache = files.FileCache(Path(sys.argv[1]) / 'home' / 'files.sqlite')\n"
        "for _ in range(3): print(files.folder_manifest(Path(sys.argv[1]), cache, keep=str.isdigit)['digest'])"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    printed = {line for process in running for line in process.communicate()[0].split()}
    assert printed == {folder_manifest(tmp_path, keep=str.isdigit)["digest"]}
    assert all(process.returncode == 0 for process in running)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda folder: folder.rename(folder.with_name("moved")), True),
        (lambda folder: (folder / ".lock").write_text("hidden"), True),
        (lambda folder: (folder / "a" / "w.bin").touch(), True),
        (lambda folder: (folder / "a" / "w.bin").rename(folder / "a" / "v.bin"), False),
        (lambda folder: (folder / "a" / "w.bin").write_bytes(b"other"), False),
        (lambda folder: (folder / "new").write_text(""), False),
    ],
)
def test_a_manifest_is_of_contents_and_relative_names(tmp_path: Path, change: Callable[[Path], Any], same: bool) -> None:
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "w.bin").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    before = folder_manifest(folder)
    change(folder)
    after = folder_manifest(next(path for path in tmp_path.iterdir()))
    assert (before["digest"] == after["digest"]) is same
    assert sorted(before["files"]) == ["a/w.bin", "config.json"]


def test_links_as_in_the_hub_cache_count_as_their_contents(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "x1").write_text("{}")
    for name, link in (("snapshot", True), ("plain", False)):
        (tmp_path / name).mkdir()
        if link:
            (tmp_path / name / "config.json").symlink_to(tmp_path / "blobs" / "x1")
        else:
            (tmp_path / name / "config.json").write_text("{}")
    assert folder_manifest(tmp_path / "snapshot") == folder_manifest(tmp_path / "plain")
