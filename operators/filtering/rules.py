"""What can be wrong with an answer: one function per rule of `filter`, as polars expressions over a row's columns.

Knows rules and texts, never files or steps. A rule that needs more than one row or a tokenizer says so by `decide`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.rows.keys import among
from caiflow.operators.measures.texts import PREAMBLE, UNSPACED, is_copy

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    Flags = NDArray[np.bool_]
    Decide = Callable[[pl.DataFrame, pl.Series, Flags], Flags]

_TOKEN = r"[\p{L}\p{N}'’]+|[^\s\p{L}\p{N}]"


class Check(NamedTuple):
    """One rule made ready: `flag` is computed for every row; without `decide` it is the verdict (true: leave the row out).

    `decide(frame, flags, alive)` gets the rows in order and says which of those still alive are to be left out.
    """

    label: str
    flag: pl.Expr
    decide: Decide | None = None


def unchanged(label: str, column: str, other: str) -> Check:
    """Flag answers equal to another column but for spaces around them."""
    return Check(label, (_stripped(column) == _stripped(other)).fill_null(False))


def copies(label: str, column: str, of: str, share: float, examples: Callable[[], Mapping[str, Sequence[str]]]) -> Check:
    """Flag answers of whose words at least `share` are taken over from `of`: a column, or the few-shot examples.

    A row that tells in `few_shot` which examples it was shown is held against those alone, any other row against all.
    """
    import polars as pl

    told = examples() if of == "examples" else {}

    def others(row: Mapping[str, Any]) -> Sequence[str]:
        if of == "examples":
            shown = told if row.get("few_shot") is None else row["few_shot"]
            return [text for name in shown for text in told.get(name, ())]
        given = row[of] or ""
        return [given] if isinstance(given, str) else [turn["content"] for turn in given]

    def decide(frame: pl.DataFrame, _flags: pl.Series, alive: Flags) -> Flags:
        verdict = alive.copy()
        wanted = [name for name in dict.fromkeys((column, "few_shot" if of == "examples" else of)) if name in frame.columns]
        asked = alive.nonzero()[0]
        for place, row in zip(asked, frame.select(wanted)[asked].iter_rows(named=True), strict=True):
            verdict[place] = is_copy(row[column] or "", others(row), share)
        return verdict

    return Check(label, pl.lit(True), decide)


def common_prefix(label: str, column: str, other: str, chars: int) -> Check:
    """Flag answers whose first `chars` characters are those of another column."""
    heads = [_stripped(name).str.head(chars) for name in (column, other)]
    return Check(label, (heads[0] == heads[1]).fill_null(False))


def length_in_characters(label: str, column: str, least: int, most: int | None) -> Check:
    """Flag texts outside a range; null has length 0."""
    import polars as pl

    size = pl.col(column).str.len_chars().fill_null(0)
    return Check(label, size < least if most is None else (size < least) | (size > most))


def length_in_tokens(label: str, column: str, least: int, most: int | None, tokenizer: Any) -> Check:
    """Flag texts outside a range of tokens, special tokens not counted; null has length 0."""
    import numpy as np
    import polars as pl

    def decide(frame: pl.DataFrame, _flags: pl.Series, alive: Flags) -> Flags:
        texts = [text or "" for text in frame[column].to_list()]
        sizes = np.zeros(len(texts), np.int64)
        asked = np.flatnonzero(alive)
        if len(asked):
            ids = tokenizer([texts[place] for place in asked], add_special_tokens=False)["input_ids"]
            sizes[asked] = [len(row) for row in ids]
        return (sizes < least) | (sizes > (np.iinfo(np.int64).max if most is None else most))

    return Check(label, pl.lit(True), decide)


def role_prefixes(label: str, column: str, roles: Sequence[str]) -> Check:
    """Flag texts in which a line begins with a role's name and a colon."""
    import polars as pl

    names = "|".join(re.escape(role) for role in sorted(roles, key=len, reverse=True))
    return Check(label, pl.col(column).str.contains(rf"(?im)^[\s*#>\[]*(?:{names})[\s*\]]*:").fill_null(False))


def preamble(label: str, column: str, phrases: Sequence[str]) -> Check:
    """Flag texts that begin by announcing a revision, or with one of `phrases` (in any case)."""
    import polars as pl

    flag = pl.col(column).str.contains(PREAMBLE)
    if phrases:
        start = "|".join(re.escape(phrase) for phrase in phrases)
        flag = flag | pl.col(column).str.contains(rf"(?i)^\s*(?:{start})")
    return Check(label, flag.fill_null(False))


def repetition(label: str, column: str, n: int, most: float) -> Check:
    """Flag texts of whose n-grams (of words and single signs) more than a share of `most` has been there before."""
    import polars as pl

    tokens = pl.col(column).fill_null("").str.to_lowercase().str.replace_all(f"({UNSPACED})", " ${1} ").str.extract_all(_TOKEN)

    def decide(_frame: pl.DataFrame, flags: pl.Series, _alive: Flags) -> Flags:
        return _repeated_share(flags, n) > most

    return Check(label, tokens, decide)


def duplicates(label: str, columns: Sequence[str], schema: Mapping[str, pl.DataType]) -> Check:
    """Flag rows whose `columns` are those of an earlier row that is kept; holds 8 bytes per kept row."""
    import polars as pl

    parts = [_as_text(name, schema[name]).fill_null("\x00") for name in columns]
    seen = _Seen()

    def decide(_frame: pl.DataFrame, flags: pl.Series, alive: Flags) -> Flags:
        return seen.again(flags.to_numpy(), alive)

    return Check(label, pl.concat_str(parts, separator="\x1f").hash(), decide)


def few_shot_leak(
    label: str,
    columns: Sequence[str],
    examples: Mapping[str, Sequence[str]],
    n: int,
    schema: Mapping[str, pl.DataType],
) -> Check:
    """Flag answers that share `n` words in a row with a few-shot example, unless the row's own prompt has them too.

    `examples` are texts by the example's id. A row that tells in `few_shot` which examples it was shown is held against
    those alone, any other row against all.
    """
    import polars as pl

    grams = {name: set().union(*(word_ngrams(text, n) for text in texts)) for name, texts in examples.items()}
    every = sorted(set().union(*grams.values()))
    texts = [_as_words(pl.col(name)) for name in columns]
    flag = pl.any_horizontal(text.str.contains_any([f" {gram} " for gram in every]).fill_null(False) for text in texts)
    told, asked = "few_shot" in schema, "prompt" in schema

    def decide(frame: pl.DataFrame, flags: pl.Series, alive: Flags) -> Flags:
        verdict = flags.to_numpy() & alive
        wanted = [*columns, *(["few_shot"] if told else []), *(["prompt"] if asked else [])]
        suspects = verdict.nonzero()[0]
        for place, row in zip(suspects, frame.select(wanted)[suspects].iter_rows(named=True), strict=True):
            shown = row["few_shot"] if told and row["few_shot"] is not None else grams
            theirs = set().union(*(grams.get(name, ()) for name in shown))
            own = _words("\n".join(turn["content"] for turn in row["prompt"] or ())) if asked else ""
            verdict[place] = any(
                f" {gram} " not in own for name in columns for gram in word_ngrams(row[name] or "", n) & theirs
            )
        return verdict

    return Check(label, flag if every else pl.lit(False), decide)


def word_ngrams(text: str, n: int) -> set[str]:
    """Return the runs of `n` words in lower case, joined by spaces; apostrophes belong to words, other signs divide them.

    A character of a script without spaces is a word.
    """
    words = _words(text).split()
    return {" ".join(words[start : start + n]) for start in range(len(words) - n + 1)}


def _words(text: str) -> str:
    """Return the words with a space before and after each, as polars sees them."""
    import polars as pl

    return str(pl.select(_as_words(pl.lit(text))).item())


def _as_words(column: pl.Expr) -> pl.Expr:
    """Return a text as `word_ngrams` sees it, with a space before and after each word."""
    import polars as pl

    plain = column.str.to_lowercase().str.replace_all(r"['’]", "").str.replace_all(f"({UNSPACED})", " ${1} ")
    plain = plain.str.replace_all(r"[\W_]+", " ")
    return pl.concat_str(pl.lit(" "), plain, pl.lit(" "))


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column as text: a conversation's roles and contents, JSON of other objects and lists, or the value."""
    import polars as pl

    column = pl.col(name)
    if not dtype.is_nested():
        return column.cast(pl.String)
    inner = dtype.inner if isinstance(dtype, pl.List) else None
    if isinstance(inner, pl.Struct) and [field.name for field in inner.fields] == ["role", "content"]:
        item = pl.element().struct
        return column.list.eval(pl.concat_str(item.field("role"), item.field("content"), separator="\x1e")).list.join("\x1d")
    return column.list.join("\x1d") if inner == pl.String else pl.struct(name).struct.json_encode()


def _stripped(name: str) -> pl.Expr:
    import polars as pl

    return pl.col(name).str.strip_chars()


def _repeated_share(tokens: pl.Series, n: int) -> NDArray[np.float64]:
    """Return for each row's tokens the share of its n-grams that repeat an earlier one; 0 where it has none."""
    import numpy as np
    import polars as pl

    lengths = tokens.list.len().to_numpy().astype(np.int64)
    codes = tokens.explode(empty_as_null=False).hash().to_numpy() if lengths.sum() else np.empty(0, np.uint64)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(codes))  # tokens from here to the row's end
    grams = np.zeros(len(codes), np.uint64)
    for step in range(n):
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + np.roll(codes, -step)
    whole = left >= n
    counts = pl.DataFrame({"row": rows[whole], "gram": grams[whole]}).group_by("row").agg(pl.len(), pl.col("gram").n_unique())
    share = np.zeros(len(lengths))
    share[counts["row"].to_numpy()] = 1 - counts["gram"].to_numpy() / counts["len"].to_numpy()
    return share


class _Seen:
    """A set of 64-bit hashes as a few sorted arrays, each more than twice as long as the next: 8 bytes per member."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def again(self, keys: NDArray[np.uint64], alive: Flags) -> Flags:
        """Return which living rows have a key that was here before, in this call or an earlier one; remember the others."""
        import numpy as np

        known = np.zeros(len(keys), bool)
        for run in self._runs:
            known |= among(keys, run)
        places = np.flatnonzero(alive & ~known)
        fresh, first = np.unique(keys[places], return_index=True)
        new = np.zeros(len(keys), bool)
        new[places[first]] = True
        self._add(fresh)
        return ~new

    def _add(self, run: NDArray[np.uint64]) -> None:
        import numpy as np

        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # in place: what is merged is there twice, not three times
        if len(run):
            self._runs.append(run)
