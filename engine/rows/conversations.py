"""Conversations as Arrow columns: adding a turn to each, and comparing what they say, without a Python object per row."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


def with_answer(prompts: pa.ChunkedArray | pa.Array, answers: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return conversations [N] (lists of {role, content}) with one assistant turn more each: answers [N], texts."""
    import numpy as np
    import pyarrow as pa

    given, texts = _whole(prompts), _whole(answers)
    lengths = _lengths(given)
    turns = given.flatten()
    roles, contents = turns.field("role"), turns.field("content")
    added = pa.array(["assistant"], roles.type).take(pa.array(np.zeros(len(given), np.int64)))
    ends = np.cumsum(lengths + 1)
    places = np.empty(len(turns) + len(given), np.int64)
    is_new = np.zeros(len(places), bool)
    is_new[ends - 1] = True
    places[is_new] = len(turns) + np.arange(len(given))
    places[~is_new] = np.arange(len(turns))
    order = pa.array(places)
    joined = [pa.concat_arrays([old, new.cast(old.type)]).take(order) for old, new in ((roles, added), (contents, texts))]
    offsets = pa.array(np.concatenate([[0], ends]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, pa.StructArray.from_arrays(joined, ["role", "content"]))


def said(conversations: pa.ChunkedArray | pa.Array, *, opening: bool = False) -> NDArray[np.uint64]:
    """Return one hash [N] of what is said in each conversation, or in its first turn alone.

    Case, spaces, the width of letters and system turns don't count. Equal within one process only.
    """
    import numpy as np
    import polars as pl
    import pyarrow as pa
    import pyarrow.compute as pc

    given = _whole(conversations)
    turns, ends = given.flatten(), np.concatenate([[0], np.cumsum(_lengths(given))])
    counts = pc.fill_null(pc.not_equal(turns.field("role").cast(pa.string()), "system"), True).to_numpy(zero_copy_only=False)
    if opening:
        before = np.concatenate([[0], np.cumsum(counts)])
        counts &= before[:-1] == np.repeat(before[ends[:-1]], np.diff(ends))
    contents = pc.fill_null(turns.field("content").cast(pa.string()), "").filter(pa.array(counts))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)])[ends], pa.int32())
    texts = pl.Series(pc.binary_join(pa.ListArray.from_arrays(offsets, contents), " "))
    plain = texts.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()
    hashes: NDArray[np.uint64] = plain.hash().to_numpy()
    return hashes


def _lengths(conversations: pa.Array) -> NDArray[np.int64]:
    import numpy as np
    import pyarrow.compute as pc

    lengths: NDArray[np.int64] = pc.fill_null(pc.list_value_length(conversations), 0).to_numpy().astype(np.int64)
    return lengths


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column
