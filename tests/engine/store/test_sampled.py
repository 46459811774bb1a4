"""The ids that a model sampled are found again by what it said, in little room."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.store.ledger import Ledger
from caiflow.engine.store.sampled import keep_sampled, sampled_ids


@pytest.mark.parametrize(("ids", "most_bytes"), [([1, 65_535], 3), ([128_255, 0, 7], 6), ([], 3)])
def test_ids_are_found_by_their_words(tmp_path: Path, ids: list[int], most_bytes: int) -> None:
    with Ledger(tmp_path, "sampled-m") as ledger:
        keep_sampled(ledger, "é said", [5])
        keep_sampled(ledger, "é said", ids)
        assert sampled_ids(ledger, "é said") == ids
        assert sampled_ids(ledger, "not said") is None
        before = sum(file.stat().st_size for file in ledger.path.iterdir())
        keep_sampled(ledger, "long", ids * 1000)
        ledger.flush()
        grown = sum(file.stat().st_size for file in ledger.path.iterdir()) - before
    assert grown <= most_bytes * len(ids) * 1000 + 100
