"""`caiflow gc`: remove from the store what no kept run needs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from caiflow.engine.commands.parser import open_store, print_json
from caiflow.engine.display.terminal import say
from caiflow.engine.store.bucket import bucket_here

if TYPE_CHECKING:
    from caiflow.engine.store.cleaning import Garbage

EXAMPLES = """\
  caiflow gc --dry-run     # what would go, and how large it is
  caiflow gc               # a run is kept while its folder exists: remove folders first
  caiflow gc --ledgers     # also the answers that were paid for and that no kept run uses
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `gc`."""
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    parser.add_argument("--ledgers", action="store_true", help="also remove answers paid for that no kept run uses")
    parser.add_argument("--json", action="store_true", help="print what is or would be removed as JSON")


def execute(args: Namespace) -> int:
    """Collect garbage."""
    from caiflow.engine.store.cleaning import collect, find_garbage

    store = open_store()
    found = find_garbage(store, paid=args.ledgers)
    gone = found if args.dry_run else collect(store, found)
    if args.json:
        things = [{"kind": item.kind, "path": str(item.path), "size_bytes": item.size_bytes} for item in gone]
        print_json("gc", {"removed": not args.dry_run, "things": things})
    else:
        say(_words(gone, "would be removed" if args.dry_run else "removed"))
        if bucket := bucket_here():
            say(f"nothing in {bucket} was looked at: what lies there goes by the rules of the bucket, such as an age")
    return 0


def _words(gone: Sequence[Garbage], what: str) -> str:
    if not gone:
        return f"nothing {what}: every artifact belongs to a run that is kept, or was made within the last hour"
    groups: dict[str, list[int]] = defaultdict(list)
    for item in gone:
        groups[item.kind].append(item.size_bytes)
    lines = [f"{kind:<10} {len(sizes):>6,}  {sum(sizes) / 1e6:>12,.1f} MB" for kind, sizes in groups.items()]
    return "\n".join([*lines, f"{len(gone):,} things {what}, {sum(item.size_bytes for item in gone) / 1e6:,.1f} MB"])
