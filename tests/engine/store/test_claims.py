"""Claims: one holder a key, in one process and over several; a holder that dies holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from caiflow.engine.store.claims import Claims, forsake

HOLDING = """
import sys, time
from pathlib import Path
from caiflow.engine.store.claims import Claims
claims = Claims(Path(sys.argv[1]))
print([claims.take(number.to_bytes(8, "big") * 2) for number in range(300)].count(True), flush=True)
time.sleep(3600)
"""


def key(number: int) -> bytes:
    return number.to_bytes(8, "big") * 2


def test_what_a_process_claimed_is_free_when_it_is_killed(tmp_path: Path) -> None:
    own = Claims(tmp_path)
    assert own.take(key(7))
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "299\n"
        assert not any(own.take(key(number)) for number in range(300))
        assert own.take(key(300))
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert [own.take(key(number)) for number in range(300)].count(True) == 299
    finally:
        holder.kill()


def test_what_a_frozen_process_claimed_is_free_once_it_is_known_to_be_lost(tmp_path: Path) -> None:
    own = Claims(tmp_path / "of a model")
    assert own.take(key(400))
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, str(own.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "300\n"
        os.kill(holder.pid, signal.SIGSTOP)
        assert not any(own.take(key(number)) for number in range(300))
        forsake(tmp_path)
        assert all(own.take(key(number)) for number in range(300))
        later = Claims(own.folder)
        assert not any(later.take(key(number)) for number in range(300))
        for number in (7, 400):
            own.release(key(number))
            assert later.take(key(number))
            assert not own.take(key(number))
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="locks of an open file are Linux's")
def test_two_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    one, other = Claims(tmp_path), Claims(tmp_path)
    assert one.take(key(1))
    assert not one.take(key(1))
    assert not other.take(key(1))
    one.release(key(1))
    assert other.take(key(1))
    one.close()
    assert not Claims(tmp_path).take(key(1))


def test_where_no_file_stays_what_it_was_all_is_granted_and_nothing_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are file systems on which a file's number changes, and none of them is here."""
    monkeypatch.setattr("caiflow.engine.store.claims._File.stays", lambda self: False)
    before, claims = len(os.listdir("/dev/fd")), Claims(tmp_path)
    assert all(claims.take(key(number)) for number in range(50))
    assert not claims.take(key(1))
    assert len(os.listdir("/dev/fd")) == before


def test_where_nothing_can_be_locked_all_is_granted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    claims = Claims(tmp_path / "file")
    assert claims.take(key(1))
    assert not claims.take(key(1))
    claims.release(key(1))
    assert claims.take(key(1))
