"""Trees of messages (OASST): several replies to each message, of which a path from the first one down is a conversation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any

from caiflow.operators.formats.dialogue import ROLES
from caiflow.operators.formats.named.fields import Record, has
from caiflow.operators.formats.named.layout import Group, See, Take
from caiflow.operators.formats.opening import Line

Path = Sequence[Record]
_DEEPEST = 500


def is_tree(record: Record) -> bool:
    """Return whether a record's prompt is a message with its replies."""
    root = record.get("prompt")
    return isinstance(root, Mapping) and isinstance(root.get("replies"), list) and isinstance(root.get("text"), str)


def is_message(record: Record) -> bool:
    """Return whether a record is one message of a tree."""
    return has("message_id", "message_tree_id", "text", "role")(record) and "parent_id" in record


def by_tree(lines: Iterator[Line], see: See) -> Iterator[Group]:
    """Yield the messages of one tree together, in the order in which the trees begin; they are held in memory."""
    trees: dict[Any, list[Line]] = defaultdict(list)
    for line in lines:
        alone = f"\x00{line.place}"
        tree = see(line).get("message_tree_id", alone)
        trees[tree if isinstance(tree, (str, int, NoneType)) else alone].append(line)
    yield from trees.values()


def paths_of_tree(records: Sequence[Record], take: Take) -> Sequence[Record]:
    """Return a record with a conversation for the best path of a tree, or for each.

    Raises:
        ValueError: it isn't a tree.
    """
    (record,) = records
    if not is_tree(record):
        raise ValueError("no tree of messages in `prompt`, which has `text`, `role` and `replies`")
    rest = {name: value for name, value in record.items() if name != "prompt"}
    paths = _paths(record["prompt"], lambda message: message.get("replies") or (), take)
    return [{**rest, "messages": _turns(path)} for path in paths]


def paths_of_messages(records: Sequence[Record], take: Take) -> Sequence[Record]:
    """Return the same of a tree that is given message by message; each path has the fields of its last one.

    Raises:
        ValueError: they aren't one tree.
    """
    for record in records:
        for name in ("message_id", "parent_id"):
            if not isinstance(record.get(name), (str, int, NoneType)):
                raise ValueError(f"`{name}` must be a text or a number, got {type(record[name]).__name__}")
    replies: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        replies[record.get("parent_id") or None].append(record)  # a table writes an empty text for null
    roots = replies.pop(None, [])
    if len(roots) != 1:
        raise ValueError(f"a tree of messages has one without `parent_id`, got {len(roots)}")
    paths = _paths(roots[0], lambda message: replies[message.get("message_id")], take)
    return [{**path[-1], "messages": _turns(path)} for path in paths]


def _paths(root: Record, replies_to: Callable[[Record], Iterable[Record]], take: Take) -> list[Path]:
    """Return the paths to a last reply of the assistant's: the one of the best replies, or each once, in order.

    Raises:
        ValueError: one is too long to be a conversation.
    """
    found: dict[int, Path] = {}
    begun: list[Path] = [[root]]
    while begun:
        path = begun.pop()
        if len(path) > _DEEPEST:
            raise ValueError(f"a tree of messages that is more than {_DEEPEST} deep")
        replies = sorted((reply for reply in replies_to(path[-1]) if not _is_deleted(reply)), key=_rank)
        begun += [[*path, reply] for reply in reversed(replies[: 1 if take == "best" else None])]
        if not replies:
            kept = _answered(path)
            found.setdefault(id(kept[-1]), kept)
    return list(found.values())


def _answered(path: Path) -> Path:
    """Return a path up to its last reply of the assistant's; all of it where it has none."""
    ends = [place for place, message in enumerate(path, 1) if _role(message) == "assistant"]
    return path[: ends[-1]] if ends else path


def _is_deleted(message: Record) -> bool:
    return str(message.get("deleted") or "false").lower() != "false"


def _rank(message: Record) -> float:
    rank = message.get("rank")
    return float("inf") if rank in (None, "") else float(rank)


def _role(message: Record) -> str:
    role = message.get("role")
    return ROLES.get(str(role).lower(), str(role))


def _turns(path: Path) -> list[dict[str, Any]]:
    return [{"role": _role(message), "content": message.get("text")} for message in path]
