"""What a server taught of how it is to be asked: the model it lists behind a bare address, and the fields it refuses.

Owns the one small file of it in the store, and how it counts to the model's identity: what is asked otherwise, or of another
model, are other answers. Decides nothing about a call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.identity import digest
from caiflow.engine.llm.served.choices import FORMAT, LIKELIHOODS
from caiflow.engine.llm.served.refusals import PREFILL_FIELDS
from caiflow.engine.store.disk import storing, write_atomic

if TYPE_CHECKING:
    from caiflow.engine.llm.base import ModelSource

ASK_ANEW = "ask_anew"
"""The kind of an engine's error for a call that can't be put any more as the model's identity says."""


class Taught(NamedTuple):
    """`named` is the model listed where only an address is given; `without` are the fields of a call that are left out.

    `continues` says whether it goes on with a turn that has begun, as far as it was ever asked.
    """

    named: str = ""
    without: tuple[str, ...] = ()
    continues: bool = False

    def fields(self) -> dict[str, Any]:
        """Return what isn't empty and by which answers are other answers: `continues` shows in `without`."""
        return {name: value for name, value in (("named", self.named), ("without", self.without)) if value}

    def kept(self) -> dict[str, Any]:
        """Return all that isn't empty."""
        return {**self.fields(), **({"continues": True} if self.continues else {})}


def taught_by(options: Mapping[str, Any]) -> Taught:
    """Return what a model's options hold of it."""
    return Taught(str(options.get("named") or ""), tuple(options.get("without") or ()), options.get("continues") is True)


_CHOICE_FIELDS = frozenset({LIKELIHOODS, "top_logprobs", FORMAT})


def in_words(taught: Taught) -> str:
    """Return how a server is asked by what it taught; empty where it taught nothing of that."""
    without = {*taught.without}
    ways = ["in words to go on from an answer's beginning"] if without & {*PREFILL_FIELDS} else []
    if LIKELIHOODS in without:
        ways.append(f"for a choice itself{'' if FORMAT in without else ' as JSON'}, since it gives no log-probabilities")
    fields = [f"`{name}`" for name in taught.without if name not in {*PREFILL_FIELDS, *_CHOICE_FIELDS}]
    return " and ".join([*ways, *([f"without {', '.join(fields)}"] if fields else [])])


def why_without(fields: Sequence[str]) -> str:
    """Return why a server is asked without these fields from here on."""
    if {*fields} <= _CHOICE_FIELDS and LIKELIHOODS in fields:
        return "gives no log-probabilities: it is asked for a choice itself from here on"
    so = "isn't known to take" if {*fields} <= {*PREFILL_FIELDS} else "refuses"
    return f"{so} {', '.join(f'`{name}`' for name in fields)}: it is asked without from here on"


def read_taught(path: Path) -> Taught:
    """Return what was kept; nothing of it where that can't be read, since the server teaches it again."""
    try:
        return taught_by(_kept(path))
    except TypeError:
        return Taught()


def all_taught(folder: Path) -> Iterator[tuple[str, Taught]]:
    """Yield the servers that are asked otherwise than a model here would be, and what they taught."""
    for path in sorted(folder.glob("*.json")):
        if in_words(taught := read_taught(path)):
            yield str(_kept(path).get("by") or "a server"), taught


def _kept(path: Path) -> Mapping[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        kept = json.loads(path.read_bytes())
        return kept if isinstance(kept, Mapping) else {}
    return {}


def keep_taught(path: Path, taught: Taught, by: str) -> None:
    """Keep it for this run and the next; `by` names the server and its model for whom reads it.

    Raises:
        StoreError: no space or no permission.
    """
    with storing(path):
        write_atomic(path, json.dumps({"by": by, **taught.kept()}) + "\n")


def as_taught(source: ModelSource, path: Path) -> ModelSource:
    """Return a served model as its server wants to be asked by what is kept at `path`, with the identity that this makes."""
    taught = read_taught(path)
    fields = taught.fields()
    identity = digest({"endpoint": source.identity, **fields}) if fields else source.identity
    return source._replace(identity=identity, options={**source.options, **taught.kept(), "taught": str(path)})
