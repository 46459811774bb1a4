"""The ledger: what is kept, found again and survives crashes, full disks and other processes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caiflow.engine.errors import StoreError
from caiflow.engine.store.ledger import Ledger, ledger_name


def k(value: object) -> bytes:
    return hashlib.blake2b(str(value).encode(), digest_size=16).digest()


def segment(home: Path, namespace: str = "n") -> Path:
    (path,) = (home / namespace).glob("*.seg")
    return path


def filled(home: Path, count: int) -> Path:
    with Ledger(home, "n") as ledger:
        for number in range(count):
            ledger.append(k(number), {"number": number, "text": "é" * number})
    return segment(home)


def test_namespaces_are_those_that_results_were_paid_under() -> None:
    assert ledger_name("critique", "0123456789abcdef" + "f" * 48) == "critique-0123456789abcdef"
    assert ledger_name("filter", "") == "filter-none"


def test_what_was_appended_is_found_at_once_and_after_reopening(tmp_path: Path) -> None:
    with Ledger(tmp_path, "n") as ledger:
        ledger.append(k(1), {"out": {"response": "a\ud800"}})
        assert ledger.get(k(1)) == {"out": {"response": "a\ud800"}}
        assert ledger.get(k(2)) is None
    with Ledger(tmp_path, "n") as ledger:
        assert ledger.get(k(1)) == {"out": {"response": "a\ud800"}}
        assert k(1) in ledger
        assert k(2) not in ledger
        assert list(ledger) == [k(1)]
        assert len(ledger) == 1
    with Ledger(tmp_path, "other") as ledger:
        assert k(1) not in ledger


def test_equal_payloads_under_distinct_keys_stay_separate(tmp_path: Path) -> None:
    with Ledger(tmp_path, "n") as ledger:
        for number in range(100):
            ledger.append(k(number), {"out": {"response": "same"}})
        assert len(ledger) == 100


def test_the_last_append_wins(tmp_path: Path) -> None:
    with Ledger(tmp_path, "n") as ledger:
        ledger.append(k(1), {"failed": "timeout"})
        ledger.append(k(1), {"out": {}})
        assert ledger.get(k(1)) == {"out": {}}
    with Ledger(tmp_path, "n") as ledger:
        assert ledger.get(k(1)) == {"out": {}}
        ledger.append(k(1), {"out": {"again": True}})
        assert ledger.get(k(1)) == {"out": {"again": True}}
        assert len(ledger) == 1


@settings(max_examples=40)
@given(
    operations=st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 9), st.sampled_from(["append", "append", "append", "reopen"]))
    ),
    fresh=st.integers(1, 5),
)
def test_it_behaves_as_a_dict(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[int, int, str]], fresh: int
) -> None:
    home, model = tmp_path_factory.mktemp("ledger"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("caiflow.engine.store.ledger_index._FRESH", fresh)  # a few records, so that sorted runs form and merge
        ledger = Ledger(home, "n")
        for number, value, operation in operations:
            if operation == "reopen":
                ledger.close()
                ledger = Ledger(home, "n")
            # keys that share their first half, and keys that don't
            key = bytes(8) + k(number)[:8] if number % 2 else k(number)
            ledger.append(key, {"value": value})
            model[key] = {"value": value}
        assert {key: ledger.get(key) for key in ledger} == model
        assert len(ledger) == len(model)
        assert k("absent") not in ledger
        ledger.close()


@settings(max_examples=60)
@given(cut=st.floats(0, 1), tail=st.binary(max_size=60))
def test_a_torn_tail_costs_only_the_records_in_it(tmp_path_factory: pytest.TempPathFactory, cut: float, tail: bytes) -> None:
    home = tmp_path_factory.mktemp("ledger")
    path = filled(home, 12)
    whole = path.read_bytes()
    ends = [len(whole)]
    at = int(cut * len(whole))
    path.write_bytes(whole[:at] + tail)
    position = 8
    ends = []
    while position < len(whole):
        position += 24 + int.from_bytes(whole[position : position + 4], "little")
        ends.append(position)
    kept = sum(end <= at for end in ends)
    with Ledger(home, "n") as ledger:
        assert all(ledger.get(k(number)) == {"number": number, "text": "é" * number} for number in range(kept))
        assert len(ledger) >= kept
        redone = [number for number in range(12) if k(number) not in ledger]
        for number in redone:
            ledger.append(k(number), {"number": number})
    with Ledger(home, "n") as ledger:
        assert len(ledger) == 12
        assert all(ledger.get(k(number))["number"] == number for number in range(12))  # type: ignore[index]


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_costs_its_record_alone(tmp_path_factory: pytest.TempPathFactory, where: int, flip: int) -> None:
    home = tmp_path_factory.mktemp("ledger")
    path = filled(home, 8)
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= flip
    path.write_bytes(data)
    with Ledger(home, "n") as ledger:
        found = {number: ledger.get(k(number)) for number in range(8)}
        lost = [number for number, payload in found.items() if payload is None]
        assert len(lost) <= 1
        assert all(found[number] == {"number": number, "text": "é" * number} for number in found if number not in lost)
        assert ledger.damaged or lost in ([], [7]), "only the end of a file may be taken for unfinished"
        ledger.append(k("new"), {})
    with Ledger(home, "n") as ledger:
        assert k("new") in ledger
        assert len(ledger) == 9 - len(lost)


def test_a_hole_between_records_costs_what_was_in_it(tmp_path: Path) -> None:
    big = "x" * (5 << 20)
    with Ledger(tmp_path, "n") as ledger:
        for number in range(4):
            ledger.append(k(number), {"text": big if number == 1 else ""})
    path = segment(tmp_path)
    data = bytearray(path.read_bytes())
    at = data.index(b"xxxx") - 20
    data[at : at + (1 << 20)] = bytes(1 << 20)
    path.write_bytes(data)
    with Ledger(tmp_path, "n") as ledger:
        assert [k(number) in ledger for number in range(4)] == [True, False, True, True]
        assert ledger.damaged == 1


def test_what_another_process_is_still_writing_is_not_taken_for_damaged(tmp_path: Path) -> None:
    with Ledger(tmp_path, "n") as writer:
        writer.append(k(1), {"number": 1})
        writer.append(k(2), {"number": 2})
        writer.append(k(3), {"number": 3})
        path = segment(tmp_path)
        whole = path.read_bytes()
        second = whole.index(k(2)) - 8
        os.pwrite(os.open(path, os.O_RDWR), bytes(8), second)  # not here yet, as over a network
        with Ledger(tmp_path, "n") as reader:
            assert len(reader) == 1
            assert reader.damaged == 0
            path.write_bytes(whole)
            reader.refresh()
            assert len(reader) == 3


def test_a_record_damaged_after_opening_counts_as_absent(tmp_path: Path) -> None:
    path = filled(tmp_path, 3)
    with Ledger(tmp_path, "n") as ledger:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        assert ledger.get(k(2)) is None
        assert ledger.get(k(1)) is not None


def test_a_record_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    big = {"text": "x" * (9 << 20)}
    with Ledger(tmp_path, "n") as ledger:
        ledger.append(k(0), {"small": 1})
        ledger.append(k(1), big)
        ledger.append(k(2), {"small": 2})
        assert ledger.get(k(1)) == big
    with Ledger(tmp_path, "n") as ledger:
        assert len(ledger) == 3
        assert ledger.get(k(1)) == big


def test_files_are_taken_over_when_free_and_left_alone_when_damaged(tmp_path: Path) -> None:
    path = filled(tmp_path, 3)
    filled(tmp_path, 4)
    assert segment(tmp_path) == path
    path.write_bytes(path.read_bytes() + b"torn")
    with Ledger(tmp_path, "n") as ledger:
        ledger.append(k("new"), {})
    assert path.read_bytes().endswith(b"torn")
    assert len(list(path.parent.glob("*.seg"))) == 2


def test_two_ledgers_at_once_see_each_other_after_refresh(tmp_path: Path) -> None:
    with Ledger(tmp_path, "n") as one, Ledger(tmp_path, "n") as other:
        one.append(k(1), {"by": "one"})
        other.append(k(2), {"by": "other"})
        assert k(2) not in one
        one.refresh()
        other.refresh()
        one.append(k(3), {"by": "one"})
        assert [one.get(k(2)), other.get(k(1))] == [{"by": "other"}, {"by": "one"}]
        other.refresh()
        assert other.get(k(3)) == {"by": "one"}


def large(home: Path, count: int = 1500) -> Path:
    """Write a file of over a megabyte, in which every third key is written twice."""
    with Ledger(home, "n") as ledger:
        for number in range(count):
            ledger.append(k(number - number % 3 // 2), {"number": number, "text": "é" * 400})
    return segment(home)


def test_a_large_file_is_opened_by_what_its_writer_left_of_it(tmp_path: Path) -> None:
    kept = large(tmp_path).with_suffix(".keys")
    with Ledger(tmp_path, "n") as ledger:
        quickly = {key: ledger.get(key) for key in ledger}
    whole = kept.read_bytes()
    for spoilt in (b"", whole[:-1], whole[:-8] + bytes(8)):
        kept.write_bytes(spoilt)
        with Ledger(tmp_path, "n") as ledger:
            assert {key: ledger.get(key) for key in ledger} == quickly
    assert len(quickly) == 1000
    assert len(whole) == 36 + 24 * 1500, "every record, of equal keys too"


def test_what_two_wrote_under_one_key_is_left_by_both(tmp_path: Path) -> None:
    with Ledger(tmp_path, "n") as one, Ledger(tmp_path, "n") as other:
        for name, ledger in (("one", one), ("other", other)):
            for number in range(1100):
                ledger.append(k(f"{name} {number}"), {"text": "x" * 1000})
        for ledger in (one, other):
            ledger.append(k("same"), {})
        for ledger in (one, other):
            ledger.catch_up()  # to each the other's is the last
    assert len(list((tmp_path / "n").glob("*.keys"))) == 2
    with Ledger(tmp_path, "n") as ledger:
        assert (ledger.get(k("same")), len(ledger)) == ({}, 2201)


def test_what_was_left_of_a_large_file_spares_reading_it_and_no_check(tmp_path: Path) -> None:
    path = large(tmp_path)
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with Ledger(tmp_path, "n") as ledger:
        assert ledger.damaged == 0, "nobody read it"
        assert [ledger.get(k(1498)), len(ledger)] == [None, 1000]


def test_what_was_left_of_a_large_file_is_no_word_on_another_state_of_it(tmp_path: Path) -> None:
    path = large(tmp_path)
    left = path.with_suffix(".keys").read_bytes()
    with Ledger(tmp_path, "n") as ledger:
        ledger.append(k("new"), {})
        path.with_suffix(".keys").write_bytes(left)  # as a kill would leave it
        with Ledger(tmp_path, "n") as other:
            assert k("new") in other
    content = path.read_bytes()
    path.write_bytes(content[:-3] + b"!!!")
    with Ledger(tmp_path, "n") as ledger:
        assert k("new") not in ledger
        assert len(ledger) == 1000


def test_many_are_found_as_each_is(tmp_path: Path) -> None:
    path = large(tmp_path)
    with Ledger(tmp_path, "n", apart="g-1") as ledger:
        ledger.append(k(0), {"number": 2**70, "text": "\ud800"})
        ledger.append(k("far"), {"text": "x" * 9000})
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        asked = [k(number) for number in (*range(1499, -1, -1), "far", "unknown", 0)]
        found = ledger.get_many(asked)
        assert found == [ledger.get(key) for key in asked]
        assert (found[1499], found[0], found[-2]) == ({"number": 2**70, "text": "\ud800"}, None, None)
        assert ledger.get_many(asked[:2]) == found[:2]


def test_opening_writes_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "home", "n") as ledger:
        assert k(1) not in ledger
    assert not (tmp_path / "home").exists()


APPENDER = """
import hashlib, sys
from pathlib import Path
from caiflow.engine.store.ledger import Ledger, ledger_name
home, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ledger = Ledger(home, "n")
for number in range(count):
    key = hashlib.blake2b(f"{name}-{number}".encode(), digest_size=16).digest()
    ledger.append(key, {"name": name, "number": number, "text": "x" * (number % 700)})
    print(number, flush=True)
ledger.close()
"""


def start(home: Path, name: str, count: int) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", APPENDER, str(home), name, str(count)], stdout=subprocess.PIPE, text=True)


@pytest.mark.kill
def test_files_of_more_hosts_than_a_shell_lets_a_process_open_are_read(tmp_path: Path) -> None:
    first = filled(tmp_path, 2)
    for host in range(100):
        (first.parent / f"{host:010d}-gone{host}-0.seg").write_bytes(first.read_bytes())
    script = f"""
import resource, sys
from pathlib import Path
from caiflow.engine.store.ledger import Ledger
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[1])))
with Ledger(Path({str(tmp_path)!r}), "n") as ledger:
    print(len(ledger), len(list(ledger.path.glob("*.seg"))))
"""
    told = [
        subprocess.run([sys.executable, "-c", script, most], capture_output=True, text=True, check=False)
        for most in ("1024", "64")
    ]
    assert told[0].stdout == "2 101\n", told[0].stderr
    assert "Too many open files" in told[1].stderr  # what it may not have at all


def test_processes_append_at_once_and_a_killed_one_loses_nothing_it_reported(tmp_path: Path) -> None:
    running = {name: start(tmp_path, name, 10**7) for name in ("one", "two")}
    reported = {}
    for process in running.values():
        assert process.stdout
        for _ in range(500):
            process.stdout.readline()
    for name, process in running.items():
        assert process.stdout
        for _ in range(500):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        reported[name] = 1000 + process.communicate()[0].count("\n")
    start(tmp_path, "after", 500).communicate()
    reported["after"] = 500
    with Ledger(tmp_path, "n") as ledger:
        for name, count in reported.items():
            assert all((ledger.get(k(f"{name}-{n}")) or {})["number"] == n for n in range(count)), name
        assert 0 <= len(ledger) - sum(reported.values()) <= 2  # at most one record each was kept and not yet reported
    assert len(list((tmp_path / "n").glob("*.seg"))) == 2  # the third process took over a file


def test_a_full_disk_is_a_clear_error_and_what_was_kept_stays(tmp_path: Path) -> None:
    code = APPENDER.replace("ledger = Ledger", "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\nledger = Ledger")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "full", "1000"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "StoreError" in done.stderr
    assert "file size limit" in done.stderr
    kept = len(done.stdout.split())
    with Ledger(tmp_path, "n") as ledger:
        assert len(ledger) == kept > 10
        ledger.append(k("more"), {})
    assert segment(tmp_path).stat().st_size > 8  # taken over: the part of a record was taken back


def test_a_store_without_permission_is_read_but_not_written() -> None:
    code = """
import os, sys
import numpy
from pathlib import Path
from caiflow.engine.errors import StoreError
from caiflow.engine.store.ledger import Ledger, ledger_name
if os.getuid() == 0:
    os.seteuid(65534)
ledger = Ledger(Path(sys.argv[1]), "n")
print(len(ledger), ledger.get(next(iter(ledger))) is not None)
try:
    ledger.append(bytes(16), {})
except StoreError as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: other users can't look into its parent
        path = filled(Path(folder), 2)
        for place, mode in ((path, 0o444), (path.parent, 0o555), (Path(folder), 0o755)):
            place.chmod(mode)
        printed = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout
        path.parent.chmod(0o755)
    assert printed.startswith("2 True\n")
    assert "no permission" in printed


@pytest.mark.parametrize("at_the_end", [False, True])
def test_an_error_of_a_background_flush_comes_up_at_the_next_append_or_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_the_end: bool
) -> None:
    monkeypatch.setattr("caiflow.engine.store.ledger._FLUSH_S", 0.01)
    ledger = Ledger(tmp_path, "n")
    ledger.append(k(1), {})
    deadline = time.monotonic() + 10
    assert ledger._own is not None
    descriptor, reader = ledger._own.descriptor, os.pipe()[0]
    kept = os.dup(descriptor)
    os.dup2(reader, descriptor)  # fsync of a pipe fails
    ledger._dirty = True
    while ledger._failed is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.dup2(kept, descriptor)
    with pytest.raises(StoreError, match="can't read or write"):
        ledger.close() if at_the_end else ledger.append(k(2), {})
    if not at_the_end:
        ledger.append(k(3), {})
        ledger.close()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_namespace_is_a_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        Ledger(tmp_path, name)


def test_payloads_are_json(tmp_path: Path) -> None:
    with Ledger(tmp_path, "n") as ledger:
        payload = {"out": {"numbers": [1, 2.5, None, True], "nested": {"é": "\n"}}}
        ledger.append(k(1), payload)
        assert ledger.get(k(1)) == json.loads(json.dumps(payload))
        with pytest.raises(TypeError):
            ledger.append(k(2), {"out": object()})


def test_one_of_a_group_reads_all_files_but_those_of_the_others(tmp_path: Path) -> None:
    keys = [bytes([n]) * 16 for n in range(4)]
    with Ledger(tmp_path, "n") as before:
        before.append(keys[0], {"v": 0})
    with Ledger(tmp_path, "n", "group-1") as first, Ledger(tmp_path, "n", "group-11") as second:
        first.append(keys[1], {"v": 1})
        second.append(keys[2], {"v": 2})
        with Ledger(tmp_path, "n") as another:
            another.append(keys[3], {"v": 3})
        first.catch_up()
        second.catch_up()
        assert [key in first for key in keys] == [True, True, False, True]
        assert [key in second for key in keys] == [True, False, True, True]
    with Ledger(tmp_path, "n", "group-1") as again, Ledger(tmp_path, "n") as whole:
        assert keys[1] in again
        again.append(keys[2], {"v": 4})
        assert [key in whole for key in keys] == [True] * 4
    assert len(list((tmp_path / "n").glob("*.seg"))) == 3, "what it had written it goes on with"
