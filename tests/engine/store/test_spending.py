"""What was spent is counted once over processes, never above its bound, and damage is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from caiflow.engine.errors import StoreError
from caiflow.engine.store.spending import Account, Most, Spent

TAKING = """
import sys
from pathlib import Path
from caiflow.engine.store.spending import Account, Most, Spent
account = Account(Path(sys.argv[1]))
print(sum(not account.take(Spent(1, 7, 3), Most(calls=1000))[1] for _ in range(700)))
"""


def test_processes_together_never_take_more_than_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "spent" / "a"
    takers = [subprocess.Popen([sys.executable, "-c", TAKING, str(path)], stdout=subprocess.PIPE) for _ in range(3)]
    taken = sum(int(taker.communicate()[0]) for taker in takers)
    assert taken == 1000
    assert Account(path).take(Spent()) == (Spent(1000, 7000, 3000), "")


@pytest.mark.parametrize(("most", "above"), [(Most(calls=1), "calls"), (Most(tokens=9), "tokens"), (Most(micros=9), "micros")])
def test_what_is_above_a_bound_is_not_taken(tmp_path: Path, most: Most, above: str) -> None:
    account = Account(tmp_path / "a")
    assert account.take(Spent(1, 5, 5), most) == (Spent(1, 5, 5), "")
    assert account.take(Spent(1, 5, 5), most) == (Spent(1, 5, 5), above)
    assert account.take(Spent(0, -1, -1), Most()) == (Spent(1, 4, 4), "")


@pytest.mark.parametrize("place", range(28))
def test_damage_is_told_and_nothing_is_spent(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a"
    Account(path).take(Spent(3, 4, 5))
    data = bytearray(path.read_bytes())
    data[place] ^= 16
    for damaged in (data, data[:place] or b"x"):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="remove the file to count anew"):
            Account(path).take(Spent(1))
