"""The store: artifacts appear whole, once, and full or forbidden disks are told apart."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from caiflow.engine.errors import DamagedError, StoreError
from caiflow.engine.store.artifacts import META, Artifact, Store, content_manifest, default_home
from caiflow.engine.store.disk import write_atomic

DIGEST = "ab" + "0" * 62


def staged(store: Store, text: str = "rows", digest: str = DIGEST) -> Path:
    folder = store.stage(digest)
    (folder / "part-00000.parquet").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "more.bin").write_bytes(b"x" * 10)
    (folder / "_history.jsonl").write_text(str(time.time_ns()))
    return folder


def test_folders_are_where_earlier_versions_look_for_them(tmp_path: Path) -> None:
    store, name = Store(tmp_path), DIGEST[:32]
    assert store.work_path(DIGEST) == store.work_dir(DIGEST) == tmp_path / "work" / name
    assert store.stage(DIGEST).name.split("~")[0] == name
    with store.claim(DIGEST) as held:
        assert held
        assert (tmp_path / "work" / f"{name}.claim").exists()
    store.record_run("first", Path("/runs/first"))
    assert [path.name for path in store.runs_dir.iterdir()] == ["ecb49dc2ff6a257348da698c526cd32f.json"]


def test_a_sealed_artifact_has_all_that_was_given(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.artifact(DIGEST) is None
    meta = {"kind": "model", "components": {"seed": 1}, "metrics": {"loss": 0.5}, "rows_in": 3, "rows_out": None, "op": "sft"}
    made = store.seal(DIGEST, staged(store), meta)
    found = store.artifact(DIGEST)
    assert found == made
    assert isinstance(found, Artifact)
    assert (found.kind, found.components, found.metrics, found.rows_in, found.rows_out) == (
        "model",
        {"seed": 1},
        {"loss": 0.5},
        3,
        None,
    )
    assert found.meta["op"] == "sft"
    assert sorted(found.files) == ["_history.jsonl", "part-00000.parquet", "sub/more.bin"]
    assert list(store.artifacts()) == [found.path]
    assert list(store.staging_dir.iterdir()) == []


def test_content_is_of_names_and_bytes_without_underscored_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, same, other = (
        store.seal(digest * 64, staged(store, text, digest * 64), {}) for digest, text in (("a", "x"), ("b", "x"), ("c", "y"))
    )
    assert one.content == same.content != other.content


def test_where_an_adapters_base_lies_is_not_its_content(tmp_path: Path) -> None:
    for name, base, rank in (("here", "/a/base", 4), ("there", "/b/base", 4), ("other", "/a/base", 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": rank}))
    here, there, other = (content_manifest(tmp_path / name)["content"] for name in ("here", "there", "other"))
    assert here == there != other


def test_the_first_seal_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.seal(DIGEST, staged(store, "first"), {"op": "first"})
    late = staged(store, "second")
    second = store.seal(DIGEST, late, {"op": "second"})
    assert second == first
    assert (first.path / "part-00000.parquet").read_text() == "first"
    assert not late.exists()


def seal_once(home: str, number: int, results: "multiprocessing.Queue[str]") -> None:
    store = Store(Path(home))
    for round_ in range(10):
        digest = f"{round_:064x}"
        artifact = store.seal(digest, staged(store, f"by {number}", digest), {"by": number})
        results.put(f"{round_} {artifact.content} {artifact.meta['by']}")


def test_processes_that_seal_at_once_all_get_the_same_artifact(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=seal_once, args=(str(tmp_path), number, results)) for number in range(3)]
    for worker in workers:
        worker.start()
    said = [results.get(timeout=60) for _ in range(30)]
    for worker in workers:
        worker.join()
    assert len(set(said)) == 10


def test_a_work_folder_survives_until_its_artifact_is_sealed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.work_dir(DIGEST) / "checkpoint").write_text("step 3")
    assert (Store(tmp_path).work_dir(DIGEST) / "checkpoint").read_text() == "step 3"
    store.seal(DIGEST, staged(store), {})
    assert not (tmp_path / "work" / DIGEST[:32]).exists()


def test_a_claim_is_held_by_one_and_ends_with_its_process(tmp_path: Path) -> None:
    store = Store(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from caiflow.engine.store.artifacts import Store\n"
        f"with Store(Path(sys.argv[1])).claim({DIGEST!r}) as held: print(held, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "True\n"
    with store.claim(DIGEST) as held:
        assert not held
    with store.claim("cd" * 32) as held:
        assert held
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with store.claim(DIGEST, timeout_s=10) as held, Store(tmp_path).claim(DIGEST) as again:
        assert held
        assert not again


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": lambda file: file.unlink(),
    "truncated": lambda file: os.truncate(file, 3),
    "grown": lambda file: file.write_bytes(file.read_bytes() + b"!"),
    "one byte": lambda file: file.write_bytes(b"R" + file.read_bytes()[1:]),
    "emptied": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("name", ["part-00000.parquet", "sub/more.bin", "_history.jsonl", META])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_artifact_is_told_and_gives_way_to_a_new_one(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    store = Store(tmp_path)
    artifact = store.seal(DIGEST, staged(store), {})
    damage(artifact.path / name)
    if name == META and json_of(artifact.path / META) is not None:
        return  # it says the same as before
    with pytest.raises(DamagedError, match=DIGEST) as caught:
        store.artifact(DIGEST)
    assert name == META or name in str(caught.value)
    made = store.seal(DIGEST, staged(store, "new"), {})
    assert (made.path / "part-00000.parquet").read_text() == "new"
    assert store.artifact(DIGEST) == made
    assert len(list(store.aside_dir.iterdir())) == 1


def json_of(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def test_an_artifact_that_was_only_copied_or_touched_is_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "one")
    artifact = store.seal(DIGEST, staged(store), {})
    os.utime(artifact.path / "part-00000.parquet", (1, 1))
    assert store.artifact(DIGEST) == artifact
    shutil.copytree(tmp_path / "one", tmp_path / "other", copy_function=shutil.copyfile)
    assert Store(tmp_path / "other").artifact(DIGEST) is not None


def test_an_artifact_sealed_before_sizes_were_kept_is_whole_or_damaged_by_its_digests(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = store.seal(DIGEST, staged(store), {})
    record = json.loads((artifact.path / META).read_text())
    del record["stamps"], record["check"]
    record["format"] = 1
    (artifact.path / META).write_text(json.dumps(record))
    assert store.artifact(DIGEST) is not None
    (artifact.path / "part-00000.parquet").write_text("cows")
    with pytest.raises(DamagedError, match="has changed"):
        store.artifact(DIGEST)


def test_runs_are_listed_while_their_folders_exist(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        store.record_run(name, tmp_path / name, artifacts=["a1"])
        time.sleep(0.01)
    store.record_run("first", tmp_path / "first", artifacts=["a2"], ledgers=["critique-x"])
    assert [run.name for run in store.runs()] == ["first", "second"]
    assert store.runs()[0].artifacts == ("a1", "a2")
    assert store.runs()[0].ledgers == ("critique-x",)
    (tmp_path / "first").rmdir()
    assert [run.name for run in store.runs()] == ["second"]


def test_the_home_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "there"))
    assert default_home() == Store().home == tmp_path / "there"
    assert not (tmp_path / "there").exists()
    monkeypatch.delenv("CAIFLOW_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_home() == tmp_path / ".cache" / "caiflow"


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "sub" / "run.json", "one")
    write_atomic(tmp_path / "sub" / "run.json", "two")
    assert [path.read_text() for path in (tmp_path / "sub").iterdir()] == ["two"]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tempfile.mkdtemp()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        os.rmdir(folder)
        pytest.skip("needs the right to mount")
    try:
        yield Path(folder)
    finally:
        subprocess.run(["umount", folder], check=True)
        os.rmdir(folder)


def test_a_full_disk_leaves_no_artifact_and_says_what_to_do(small_disk: Path) -> None:
    from caiflow.engine.rows.folder import Rows, RowsWriter

    store = Store(small_disk)
    noise = [{"text": os.urandom(400).hex()} for _ in range(4000)]
    with pytest.raises(StoreError, match=r"no space left.*caiflow gc"), RowsWriter(store.stage(DIGEST)) as writer:
        writer.write_rows(noise)
    for leftover in store.staging_dir.glob("*/*"):
        leftover.unlink()
    folder = store.stage(DIGEST)
    with RowsWriter(folder) as writer:
        writer.write_rows(noise[:100])
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_frsize))
    with pytest.raises(StoreError, match="no space left"):
        store.seal(DIGEST, folder, {"big": "y" * 10_000})
    assert store.artifact(DIGEST) is None
    (small_disk / "filler").unlink()
    assert Rows(store.seal(DIGEST, folder, {}).path).num_rows == 100


def test_a_read_only_store_can_be_read_but_not_written(small_disk: Path) -> None:
    store = Store(small_disk)
    store.seal(DIGEST, staged(store), {})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert store.artifact(DIGEST) is not None
    for write in (lambda: store.stage(DIGEST), lambda: store.record_run("x", small_disk), lambda: store.work_dir("cd" * 32)):
        with pytest.raises(StoreError, match="read-only"):
            write()


def test_what_is_on_disk_says_which_artifact_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = json.loads((store.seal(DIGEST, staged(store), {"op": "load"}).path / META).read_text())
    assert record["digest"] == DIGEST
    assert record["meta"] == {"op": "load"}


def test_weights_that_only_their_writer_may_read_are_sealed_like_everything_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = staged(store)
    (folder / "sub" / "more.bin").chmod(0o600)
    sealed = store.seal(DIGEST, folder, {}).path
    plain = tmp_path / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in sealed.rglob("*") if path.is_file()} == {plain.stat().st_mode}
    store.artifact(DIGEST)
