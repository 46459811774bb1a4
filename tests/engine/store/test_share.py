"""Stores on shared file systems: what they are, whether their locks hold, and that nothing is lost where those don't.

No kernel of ours mounts NFS, so its rules are laid under the process by a library between it and the system's calls.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from caiflow.engine.machine import machine_tag
from caiflow.engine.store.ledger import Ledger
from caiflow.engine.store.ledger_segment import ELSEWHERE_S
from caiflow.engine.store.share import Held, faults, locks_had, mount_of
from support.once import made_once

TABLE = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:50 / /shared rw,relatime shared:7 - nfs4 server:/x rw,vers=4.2,local_lock=none,addr=10.0.0.1
41 27 0:51 / /old rw - nfs server:/x rw,vers=3,nolock,local_lock=all
42 27 0:52 / /lu\\040stre rw - lustre mgs@tcp:/x rw,localflock
43 27 0:53 / /mine rw - fuse.sshfs host:/ rw
44 27 0:54 / /win rw - cifs //host/x rw,nobrl
"""


@pytest.mark.parametrize(
    ("path", "kind", "shared", "alone"),
    [
        ("/home/me", "ext4", False, ""),
        ("/shared/caiflow", "nfs4", True, ""),
        ("/sharedother", "ext4", False, ""),
        ("/old/x", "nfs", True, "local_lock=all"),
        ("/lu stre/x", "lustre", True, "localflock"),
        ("/mine", "fuse.sshfs", True, ""),
        ("/win/x", "cifs", True, "nobrl"),
    ],
)
def test_a_mount_says_whether_its_locks_hold_elsewhere(tmp_path: Path, path: str, kind: str, shared: bool, alone: str) -> None:
    (tmp_path / "mountinfo").write_text(TABLE)
    found = mount_of(Path(path), tmp_path / "mountinfo")
    assert (found.kind, found.shared, found.alone) == (kind, shared, alone)
    assert mount_of(Path(path), tmp_path / "nowhere").kind == ""


def test_here_locks_renames_and_syncs_hold(tmp_path: Path) -> None:
    assert list(faults(tmp_path / "home")) == []
    assert list((tmp_path / "home").iterdir()) == []


def test_locks_are_had_once_nobody_holds_them(tmp_path: Path) -> None:
    held = Held(tmp_path)
    try:
        assert locks_had(tmp_path) == []
    finally:
        held.close()
    assert locks_had(tmp_path) == ["of files", "of parts of files"]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux, for the rules of other file systems")

    def compiled(folder: Path) -> None:
        source = Path(__file__).parents[2] / "support" / "share_rules.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "rules.so", source, "-ldl"], check=True)

    return made_once(tmp_path_factory, "share_rules", compiled) / "rules.so"


USED = """
import sys, time
from pathlib import Path
from caiflow.engine.store import cleaning, share
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.ledger import Ledger
store, name = Store(Path(sys.argv[1])), "ab" + "0" * 62
print("; ".join(share.faults(store.home)))
with Ledger(store.ledger_dir, "n") as ledger:
    ledger.append(b"k" * 16, {"a": 1})
with store.claim(name):
    staged = store.stage(name)
    (staged / "rows").write_text("x")
    store.seal(name, staged, {})
removed = cleaning.collect(store, cleaning.find_garbage(store, grace_s=-1, paid=True))
print(sorted(item.kind for item in removed), [path.name for path in store.ledger_dir.iterdir()])
"""


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("nfs", "\n['artifact', 'ledger'] []\n"),
        ("nosync", "\n['artifact', 'ledger'] []\n"),
        ("alone", "locks of files don't keep another process out\n['artifact', 'ledger'] []\n"),
        ("nolock", "locks: No locks available\n"),
    ],
)
def test_a_store_is_used_and_cleaned_by_the_rules_of_others(tmp_path: Path, rules: Path, rule: str, said: str) -> None:
    variables = {**os.environ, "LD_PRELOAD": str(rules), "RULES": rule}
    done = subprocess.run(
        [sys.executable, "-c", USED, str(tmp_path)], env=variables, capture_output=True, text=True, check=False
    )
    assert done.stdout == said, done.stderr
    if rule == "nolock":
        assert re.search(r"StoreError: .*the file system gives no locks.*mount it with locks", done.stderr)


def test_a_ledger_file_of_another_machine_is_read_and_never_written(tmp_path: Path) -> None:
    with Ledger(tmp_path, "n") as ledger:
        ledger.append(b"a" * 16, {"by": "there"})
    (own,) = (tmp_path / "n").glob("*.seg")
    theirs = own.with_name(own.name.replace(machine_tag(), "0" * 8))
    own.rename(theirs)
    before = theirs.read_bytes()
    with Ledger(tmp_path, "n") as ledger:  # nobody holds it, as it seems from here
        ledger.append(b"b" * 16, {"by": "here"})
        assert [ledger.get(key * 16) for key in (b"a", b"b")] == [{"by": "there"}, {"by": "here"}]
    assert theirs.read_bytes() == before
    assert len(list((tmp_path / "n").glob("*.seg"))) == 2
    long_ago = time.time() - ELSEWHERE_S - 60
    os.utime(theirs, (long_ago, long_ago))
    own.unlink(missing_ok=True)
    for path in (tmp_path / "n").glob(f"*{machine_tag()}*"):
        path.unlink()
    with Ledger(tmp_path, "n") as ledger:  # its machine is gone for good
        ledger.append(b"c" * 16, {"by": "here"})
    assert len(theirs.read_bytes()) > len(before)
