"""A bucket of artifacts: sent whole or not at all, fetched only as they were sealed, and in words where it isn't to be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caiflow.engine.errors import DamagedError, StoreError
from caiflow.engine.rows.folder import Rows
from caiflow.engine.run.runner import run
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Artifact, Store
from caiflow.engine.store.bucket import VARIABLE, Bucket
from caiflow.engine.store.journal import read_run
from support.bucket_server import KEYS, bucket_server
from support.events import read_events
from support.runs_without_ray import AskedLink, carry_out, write_spec

DIGEST, OTHER = "ab" + "0" * 62, "cd" + "0" * 62


def sealed(store: Store, digest: str = DIGEST, text: str = "rows", large: int = 0) -> Artifact:
    folder = store.stage(digest)
    (folder / "part-00000.parquet").write_text(text)
    (folder / "sub").mkdir()
    (folder / "sub" / "more.bin").write_bytes(b"x" * large)
    return store.seal(digest, folder, {"kind": "rows", "op": "load", "rows_out": 3})


def lying(tmp_path: Path) -> list[Path]:
    """Return the files under the bucket's folder."""
    return [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()]


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket((tmp_path / "bucket" / "cai").as_uri())


def test_what_is_sent_another_store_has_as_it_was_sealed(tmp_path: Path, bucket: Bucket) -> None:
    one, two, said = Store(tmp_path / "one"), Store(tmp_path / "two"), list[str]()
    sent = sealed(one, large=20_000_000)
    bucket.check()
    assert not bucket.has(sent)
    bucket.send(sent)
    assert bucket.has(sent)
    other = Bucket((tmp_path / "bucket" / "cai").as_uri())
    other.told = said.append
    got = other.fetch(DIGEST, two)
    assert got is not None
    assert (got.path, got.content, got.files, got.meta) == (two.path(DIGEST), sent.content, sent.files, sent.meta)
    assert two.artifact(DIGEST) == got  # by its own files' times
    assert other.fetch(OTHER, two) is None
    assert said == [f"load {DIGEST[:12]} (20.0 MB) comes from {bucket}"]
    assert not list(two.staging_dir.iterdir())


def test_files_that_are_there_are_not_sent_again_and_half_a_file_is(tmp_path: Path, bucket: Bucket) -> None:
    store = Store(tmp_path / "one")
    first = sealed(store)
    bucket.send(first)
    before = {path: path.stat().st_mtime_ns for path in lying(tmp_path)}
    bucket.send(sealed(store, OTHER))  # the same files
    assert {path: path.stat().st_mtime_ns for path in lying(tmp_path) if path in before} == before
    assert len(lying(tmp_path)) == len(before) + 1
    (whole,) = (path for path in before if path.name == first.files["part-00000.parquet"])
    whole.write_text("ro")
    bucket.send(first)
    assert whole.read_text() == "rows"


def test_sending_that_is_stopped_leaves_nothing_that_counts(tmp_path: Path, bucket: Bucket) -> None:
    artifact = sealed(Store(tmp_path / "one"), large=20_000_000)
    bucket.stopped = iter([False, False, False, True]).__next__
    with pytest.raises(KeyboardInterrupt):
        bucket.send(artifact)
    assert lying(tmp_path)
    bucket.stopped = lambda: False
    assert not bucket.has(artifact)
    assert bucket.fetch(DIGEST, Store(tmp_path / "two")) is None
    bucket.send(artifact)
    assert Bucket(bucket._address).fetch(DIGEST, Store(tmp_path / "two")) is not None


@pytest.mark.parametrize("damage", ["changed", "gone", "record"])
def test_what_was_damaged_there_is_not_taken_and_gives_way(tmp_path: Path, bucket: Bucket, damage: str) -> None:
    store, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    artifact = sealed(store)
    bucket.send(artifact)
    (file,) = (path for path in lying(tmp_path) if path.name == artifact.files["part-00000.parquet"])
    (record,) = (path for path in lying(tmp_path) if path.suffix == ".json")
    if damage == "changed":
        file.write_text("ROWS")
    elif damage == "gone":
        file.unlink()
    else:
        record.write_bytes(record.read_bytes().replace(b'"rows_out": 3', b'"rows_out": 4'))
    with pytest.raises(DamagedError, match="run again, which makes it anew"):
        bucket.fetch(DIGEST, two)
    assert two.artifact(DIGEST) is None
    assert not list(two.staging_dir.glob("*"))
    assert not bucket.has(artifact)
    bucket.send(sealed(two))
    assert Bucket(bucket._address).fetch(DIGEST, Store(tmp_path / "three")) is not None


@pytest.mark.parametrize("name", ["../../../evil", "/tmp/caiflow-evil", ""])
def test_a_record_that_leads_elsewhere_is_refused(tmp_path: Path, bucket: Bucket, name: str) -> None:
    from caiflow.engine.store.artifacts import _check

    artifact = sealed(Store(tmp_path / "one"))
    bucket.send(artifact)
    (path,) = (path for path in lying(tmp_path) if path.suffix == ".json")
    record = json.loads(path.read_bytes())
    del record["check"]
    record["files"][name] = artifact.files["part-00000.parquet"]
    path.write_text(json.dumps({**record, "check": _check(record)}))
    with pytest.raises(DamagedError, match="not this artifact's record"):
        bucket.fetch(DIGEST, Store(tmp_path / "two"))
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/caiflow-evil").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://me:secret@results/cai", "keys don't belong into the address"),
        ("nosuch://results", "Unrecognized filesystem"),
        ("s3:///cai", "Missing bucket"),
    ],
)
def test_an_address_that_is_none_is_told_with_what_to_do(address: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as raised:
        Bucket(address).check()
    assert VARIABLE in raised.value.message
    assert raised.value.hint
    assert "secret" not in str(raised.value)


def test_another_machine_has_a_run_from_the_bucket_without_making_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, link = write_spec(tmp_path, ["Hi?", "Why?"], ["Be kind."]), AskedLink()
    rows, _ = carry_out(spec, Store(tmp_path / "one"), link)
    asked = len(link.answered)
    monkeypatch.setenv(VARIABLE, (tmp_path / "bucket").as_uri())
    loaded = load_spec(spec)
    for home in ("one", "two"):  # the first has it all in its store, and sends it
        assert run(loaded, Store(tmp_path / home), tmp_path / f"run-{home}").status == "done"
        assert {step["status"] for step in read_run(tmp_path / f"run-{home}")["steps"].values()} == {"cached"}
    assert Rows(tmp_path / "run-two" / "steps" / "kept").pylist() == rows
    assert len(link.answered) == asked
    fetched = [event["text"] for event in read_events(tmp_path / "run-two") if event["event"] == "log"]
    assert sum("comes from" in text for text in fetched) == 4
    (tmp_path / "bucket" / "README.txt").unlink()
    (tmp_path / "bucket" / "README.txt").mkdir()  # nothing can be written there
    with pytest.raises(StoreError, match=VARIABLE):
        run(loaded, Store(tmp_path / "one"), tmp_path / "run-none")


def test_what_could_not_be_sent_is_told_and_the_next_run_sends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_spec(tmp_path, ["Hi?"], ["Be kind."])
    store = Store(tmp_path / "one")
    carry_out(spec, store, AskedLink())
    monkeypatch.setenv(VARIABLE, (tmp_path / "bucket").as_uri())
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "artifacts").write_text("in the way")
    ended = run(load_spec(spec), store, tmp_path / "first")
    assert (ended.status, ended.exit_code) == ("failed", 1)
    said = {event["step"]: event["text"] for event in read_events(tmp_path / "first") if "isn't in" in event.get("text", "")}
    assert set(said) == {"rows", "answer", "critique", "kept"}
    assert all("the next run of the spec sends it" in text for text in said.values())
    assert {step["status"] for step in read_run(tmp_path / "first")["steps"].values()} == {"cached"}
    (tmp_path / "bucket" / "artifacts").unlink()
    assert run(load_spec(spec), store, tmp_path / "second").status == "done"
    assert len(list((tmp_path / "bucket" / "artifacts").rglob("*.json"))) == 4


@pytest.mark.soak
def test_a_real_s3_keeps_artifacts_and_says_in_words_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with bucket_server() as server:
        artifact = sealed(Store(tmp_path / "one"), large=25_000_000)  # several parts
        bucket = Bucket(server.address())
        bucket.check()
        bucket.send(artifact)
        assert server.keys() == sorted(
            ["cai/README.txt", f"cai/artifacts/ab/{DIGEST}.json", *(f"cai/files/{s[:2]}/{s}" for s in artifact.files.values())]
        )
        got = Bucket(server.address()).fetch(DIGEST, Store(tmp_path / "two"))
        assert got is not None
        assert got.files == artifact.files
        sent = server.written("/files/")
        bucket.send(sealed(Store(tmp_path / "one"), OTHER, large=25_000_000))
        assert server.written("/files/") == sent
        with pytest.raises(StoreError, match="there is no such bucket"):
            Bucket(server.address(bucket="nowhere")).check()
        server.refused = "README"
        with pytest.raises(StoreError, match="no permission"):
            Bucket(server.address()).check()
        address = server.address()
    with pytest.raises(StoreError, match="nobody answers"):
        Bucket(address).check()
