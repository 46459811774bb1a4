"""Rows that a loss is measured on must be none of those that are trained on: they are told apart by their prompts.

Prompts are the same as in a mixture's `held_out`: case, spaces and system turns don't count. Reads rows; never trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from caiflow.engine.errors import StepError
from caiflow.engine.rows.keys import among

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from caiflow.engine.rows.folder import Rows

COLUMNS = ("prompt", "messages", "text", "chosen")
"""Where a row's prompt is looked for, or what else it is told by: the first of these that both sides have."""


def refuse_shared(train: Rows, held_out: Rows, names: tuple[str, ...]) -> None:
    """Refuse rows to measure on whose prompts are among those to train on; `names` are the steps of the two.

    Raises:
        StepError: there are some; it says how many, and the first one's uid.
    """
    import numpy as np

    column = next((name for name in COLUMNS if name in train.columns and name in held_out.columns), None)
    if column is None:
        return
    learnt = np.unique(np.concatenate([np.empty(0, np.uint64), *(keys for _, keys in _keys(train, column))]))
    shared = [uid for uids, keys in _keys(held_out, column) for uid in uids.filter(among(keys, learnt)).to_pylist()]
    if shared:
        raise StepError(
            f"{len(shared)} rows of `{names[1]}` have prompts that `{names[0]}` is trained on, {shared[0]} the first",
            "load both sides by one `split`, or leave such rows out of `input` by `mix` with `held_out`",
        )


def _keys(rows: Rows, column: str) -> Iterator[tuple[pa.Array, NDArray[np.uint64]]]:
    """Yield uids and a hash of what is said in each row's column, in batches; rows with nothing there are left out."""
    from caiflow.engine.rows.conversations import said

    for batch in rows.batches(16_384, ["uid", column]):
        found = batch.filter(batch.column(column).is_valid())
        if len(found):
            yield found.column("uid"), said(_conversations(found.column(column)))


def _conversations(column: pa.Array) -> pa.Array:
    """Return conversations as they are, and texts as conversations of one turn."""
    import pyarrow as pa

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    turns = pa.StructArray.from_arrays([pa.array(["user"] * len(column)), column.cast(pa.string())], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array(range(len(column) + 1), pa.int32()), turns)
