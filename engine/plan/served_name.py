"""Which model answers behind a bare address: the server is asked once a plan or run, and the name it lists is kept.

Asks only where the user's word for this server isn't wanting, sends nothing but the key, and never fails: a server that is down
leaves the name that it last listed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from caiflow.engine.errors import EngineError, PlanError, StoreError
from caiflow.engine.llm.served.listing import ask_listed, choose_named, key_header, key_in, names_of
from caiflow.engine.llm.served.taught import Taught, keep_taught, read_taught
from caiflow.engine.plan.consent import named_by_hand, refuse_unallowed
from caiflow.engine.spec.permissions import Permissions

if TYPE_CHECKING:
    from caiflow.engine.spec.grammar import ModelEntry

_PATIENCE_S = 5.0


def learn_name(entry: ModelEntry, taught: Path, allowed: Permissions) -> None:
    """Keep at `taught` which model a server lists; another one than before has refused no field yet."""
    kept = read_taught(taught).named
    named = choose_named(kept, _listed(entry, allowed))
    if named != kept:
        with suppress(StoreError):  # the run says so; a plan may read a store that it can't write
            keep_taught(taught, Taught(named), entry.address)


def _listed(entry: ModelEntry, allowed: Permissions) -> list[str]:
    import httpx

    try:
        refuse_unallowed({"": entry}, allowed, trust_remote_code=True)
        header = key_header(key_in(entry.api_key_env or ""))
        return names_of(
            ask_listed(entry.address, header, min(_PATIENCE_S, entry.timeout_s), by_hand=named_by_hand(entry, allowed))
        )
    except (PlanError, EngineError, httpx.HTTPError, httpx.InvalidURL):
        return []
