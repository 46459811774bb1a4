"""From rows to the token ids that trainers read, through the renderer that serving uses too.

Owns which columns of a row make a conversation or a preference, and what of it carries loss. Never trains, never loads a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from caiflow.engine.errors import EngineError, StepError, WrongValue
from caiflow.engine.llm.base import Message, Request
from caiflow.engine.rows.tool_use import refuse_tools, tools_of, with_tool_use

if TYPE_CHECKING:
    from datasets import Dataset

    from caiflow.engine.llm.render import Renderer
    from caiflow.engine.rows.folder import Rows
    from caiflow.engine.training.sampled import Sampled

IGNORED = -100
"""The label of a token that carries no loss."""

T = TypeVar("T")

LossOn = Literal["assistant", "completion", "all"]


@dataclass(slots=True)
class Counts:
    """What became of the rows on their way to the trainer."""

    rows: int = 0
    cut: int = 0
    left_out: int = 0
    """All that don't train, those below included."""
    blank: int = 0
    """Rows left out since a text in them is empty."""
    aside: int = 0
    """Rows that their mark keeps from being learnt here; they aren't among `rows`."""
    equal: int = 0
    """Pairs left out since both replies are the same, as they stand or as they are cut."""
    tokens: int = 0

    def metrics(self, prefix: str = "") -> dict[str, int]:
        """Return the counts under the names they have in run.json."""
        reasons = {
            f"{prefix}rows_{reason}": getattr(self, reason) for reason in ("blank", "equal", "aside") if getattr(self, reason)
        }
        return {
            f"{prefix}rows": self.rows,
            f"{prefix}rows_cut": self.cut,
            f"{prefix}rows_left_out": self.left_out,
            **reasons,
            f"{prefix}tokens": self.tokens,
        }


class Blank(StepError):
    """A row whose text to learn, or to reply to, is empty: it is left out and counted, in every trainer."""


class Aside(StepError):
    """A row that is marked as good or bad (KTO) and so has nothing to learn here: a bad reply, or one without a partner."""


@dataclass(slots=True)
class Tokens:
    """Token ids as a data set, and what became of the rows."""

    data: Dataset
    counts: Counts = field(default_factory=Counts)


def conversation_of(row: Mapping[str, Any], column: str | None = None) -> list[Message] | str:
    """Return what a row teaches: a conversation that ends with the assistant, or a plain text.

    With `column`, that column holds the reply to `prompt`, or a whole conversation. Otherwise, the first that is there of
    `revision` as the reply to `prompt`, `messages`, `response` as the reply to `prompt`, `text`.

    Raises:
        Aside: it has none, and is marked as bad.
        Blank: the one it has is empty; what comes after it isn't learnt in its place.
        StepError: the row has none of them, or the one it has is no such thing.
    """
    names = (column,) if column else ("revision", "messages", "response", "text")
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        _refuse_unfit(name, value, row)
        if not isinstance(value, str):
            return with_tool_use(value, row)
        if row.get("prompt"):
            return with_tool_use([*_turns_of(row["prompt"]), {"role": "assistant", "content": value}], row)
        if name == "text" or column:
            return value
    if _mark(row) is False:
        raise Aside("it is marked as bad")
    raise StepError(f"nothing to train on, looked for {', '.join(names)}; filter such rows out before")


def _mark(row: Mapping[str, Any]) -> bool | None:
    """Return whether the row's reply is marked as good, also as a table writes it; None where nothing says so."""
    value = row.get("label") if row.get("label") is not None else row.get("kto_tag")
    return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).strip().lower())


def _refuse_unfit(name: str, value: Any, row: Mapping[str, Any]) -> None:
    if not isinstance(value, str) and not all(isinstance(turn, Mapping) for turn in value):
        raise StepError(f"`{name}` holds several texts, not one reply or conversation; name another `column`")
    calls = not isinstance(value, str) and bool(value) and "tool_calls" in with_tool_use(value, row)[-1]
    if _is_blank(value) and not calls:
        raise Blank(f"`{name}` is empty, and an empty reply teaches to say nothing")


def _is_blank(value: Any) -> bool:
    """Say whether a text, or the last turn of a conversation, has nothing but white space."""
    text = value if isinstance(value, str) else value[-1]["content"] if value else ""
    return not text.strip()


def contents(rows: Rows, column: str | None = None) -> Iterator[list[Message] | str]:
    """Yield what each row teaches, those that are blank left out.

    Raises:
        StepError: a row teaches nothing; it is named.
    """
    yield from _each(rows, Counts(), lambda row: conversation_of(row, column))


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """Return a prompt as turns; a text is one turn of the user.

    Raises:
        ValueError: tools are called in it.
    """
    found = _turns_of(prompt)
    refuse_tools(found)
    return found


def _turns_of(prompt: str | Sequence[Message]) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]  # type: ignore[misc]


def reply_ids(renderer: Renderer, prompt: Sequence[Message], reply: Message) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt exactly as serving renders it, and the ids of the reply up to its end of turn."""
    head, _, tail = _rendered(renderer, [*prompt, reply], last=True)
    return head, tail


def _rendered(
    renderer: Renderer, content: Sequence[Message], *, last: bool, tools: Any = None
) -> tuple[list[int], list[int], list[int]]:
    """Return the prompt's ids, which of them (1) the assistant wrote in earlier turns, and the ids of the last reply.

    With `last`, none of the prompt's ids are marked.
    """
    head = renderer.prompt_ids(content[:-1], tools)
    whole = renderer.conversation(content, last=last, tools=tools)
    if whole.ids[: len(head)] == head:
        end = len(whole.mask) - whole.mask[::-1].index(1) if 1 in whole.mask else len(head)
        return head, whole.mask[: len(head)], whole.ids[len(head) : end]
    if content[-1].get("tool_calls"):
        raise StepError("the chat template doesn't tell the call of a tool from its prompt")
    # a token spans the end of the prompt where both are read at once; serving sees the prompt alone
    tail = renderer.words(content[-1]["content"])
    return head, [0] * len(head), [*tail, renderer.tokenizer.eos_token_id]


def labelled(
    renderer: Renderer, content: list[Message] | str, loss_on: LossOn, tools: Any = None
) -> tuple[list[int], list[int]]:
    """Return a conversation's or text's token ids and labels; what precedes the last reply has the ids that serving gives it.

    `tools` are those that the conversation has; calls of them are learnt as replies are.

    Raises:
        StepError: a conversation doesn't end with the assistant.
    """
    ids, labels, _ = _labelled(renderer, content, loss_on, tools)
    return ids, labels


def _labelled(
    renderer: Renderer, content: list[Message] | str, loss_on: LossOn, tools: Any
) -> tuple[list[int], list[int], list[int]]:
    """Return what `labelled` does, and the ids of the last reply."""
    if isinstance(content, str):
        ids = [*renderer.ids(Request(content)), renderer.tokenizer.eos_token_id]
        return ids, list(ids), []
    if not content or content[-1]["role"] != "assistant":
        raise StepError("a conversation to train on must end with the assistant's turn; give the reply a column and name it")
    head, earlier, reply = _rendered(renderer, content, last=loss_on == "completion", tools=tools)
    if loss_on == "all":
        return head + reply, head + reply, reply
    counts = [bit == 1 and loss_on == "assistant" for bit in earlier]
    return head + reply, [token if bit else IGNORED for token, bit in zip(head, counts, strict=True)] + reply, reply


def conversations(
    rows: Rows,
    renderer: Renderer,
    *,
    max_length: int,
    loss_on: LossOn,
    column: str | None = None,
    sampled: Sampled | None = None,
) -> Tokens:
    """Tokenise rows for supervised training: columns `input_ids` and `labels`, cut to `max_length` tokens.

    `sampled` sees the last reply of each conversation.
    """
    counts = Counts()

    def read(row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        talk = conversation_of(row, column)
        ids, labels, reply = _labelled(renderer, talk, loss_on, tools_of(row))
        if sampled and not isinstance(talk, str):
            sampled.see(str(row["uid"]), talk[-1]["content"], reply, renderer)
        return ids, labels

    def encoded() -> Iterator[dict[str, list[int]]]:
        for ids, labels in _each(rows, counts, read):
            counts.cut += len(ids) > max_length
            kept = labels[:max_length]
            if all(label == IGNORED for label in kept[1:]):
                counts.left_out += 1
                continue
            counts.tokens += len(kept)
            yield {"input_ids": ids[:max_length], "labels": kept}

    return Tokens(_dataset(encoded(), {"input_ids": "int32s", "labels": "int32s"}), counts)


def preference_of(row: Mapping[str, Any]) -> tuple[list[Message], Message, Message, float]:
    """Return a preference row as prompt, chosen reply, rejected reply and the probability that the chosen one is better.

    `chosen` and `rejected` are texts, single turns, or whole conversations; those share their beginning, which is the prompt
    where `prompt` is absent. A missing `p_chosen` means 1.

    Raises:
        Aside: a reply is missing, and the other one is marked as good or bad.
        Blank: a reply is empty.
        StepError: a reply is missing or isn't a single turn after the common prompt, or `p_chosen` is outside 0 to 1.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if (chosen is None or rejected is None) and _mark(row) is not None:
        raise Aside("no reply to its prompt has the other mark")
    if chosen is None or rejected is None:
        raise StepError("a preference needs `chosen` and `rejected`; filter rows without them out before")
    if _is_blank(chosen) or _is_blank(rejected):
        raise Blank("a reply is empty")
    prompt = as_messages(row["prompt"]) if row.get("prompt") else _common(chosen, rejected)
    p = 1.0 if row.get("p_chosen") is None else float(row["p_chosen"])
    if not 0.0 <= p <= 1.0:
        raise StepError(f"`p_chosen` is a probability, got {p}")
    return prompt, _reply(prompt, chosen), _reply(prompt, rejected), p


def _common(chosen: Any, rejected: Any) -> list[Message]:
    if isinstance(chosen, str) or isinstance(rejected, str):
        return []
    shared: list[Message] = []
    for left, right in zip(chosen[:-1], rejected[:-1], strict=False):
        if left != right:
            break
        shared.append(left)
    return shared


def _reply(prompt: list[Message], value: Any) -> Message:
    if isinstance(value, str):
        return {"role": "assistant", "content": value}
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in value]
    rest = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    if len(rest) != 1 or rest[0]["role"] != "assistant":
        raise StepError(f"the reply after the prompt must be one turn of the assistant, got {len(rest)} turns")
    return {"role": "assistant", "content": rest[0]["content"]}


def preferences(rows: Rows, renderer: Renderer, *, max_length: int, sampled: Sampled | None = None) -> Tokens:
    """Tokenise preference rows: columns `prompt_ids`, `chosen_ids`, `rejected_ids` and `p_chosen`.

    Replies are cut to `max_length` together with their prompt. Rows whose prompt alone fills it are left out, and those whose
    replies are empty or, as they are cut, the same. `sampled` sees both replies of each pair.
    """
    counts = Counts()

    def encoded() -> Iterator[dict[str, Any]]:
        for head, yes, no, p in _each(rows, counts, lambda row: _pair_ids(renderer, row, sampled)):
            room = max_length - len(head)
            same = yes[: max(0, room)] == no[: max(0, room)]
            if room <= 0 or same:
                counts.left_out += 1
                counts.equal += room > 0
                continue
            counts.cut += max(len(yes), len(no)) > room
            record: dict[str, Any] = {"prompt_ids": head, "chosen_ids": yes[:room], "rejected_ids": no[:room], "p_chosen": p}
            counts.tokens += 2 * len(head) + len(record["chosen_ids"]) + len(record["rejected_ids"])
            yield record

    kinds = {"prompt_ids": "int32s", "chosen_ids": "int32s", "rejected_ids": "int32s", "p_chosen": "float"}
    return Tokens(_dataset(encoded(), kinds), counts)


def _pair_ids(renderer: Renderer, row: Any, sampled: Sampled | None) -> tuple[list[int], list[int], list[int], float]:
    prompt, *replies, p = preference_of(row)
    (head, yes), (_, no) = (reply_ids(renderer, prompt, reply) for reply in replies)
    for reply, ids in zip(replies, (yes, no), strict=True):
        if sampled:
            sampled.see(str(row["uid"]), reply["content"], ids, renderer)
    return head, yes, no, p


def prompts(rows: Rows, renderer: Renderer, *, max_length: int, more: Sequence[str] = ()) -> Tokens:
    """Gather prompts as conversations: column `prompt`. Empty ones and those beyond `max_length` tokens are left out.

    Where `more` names columns, their values stand together in the column `more`.
    """
    from datasets import Dataset

    counts, kept = Counts(), []
    for prompt, length, row in _each(rows, counts, lambda row: (*_prompt_of(renderer, row), row)):
        if length > max_length:
            counts.left_out += 1
            continue
        counts.tokens += length
        given = {"more": {name: row.get(name) for name in more}} if more else {}
        kept.append({"prompt": [{"role": turn["role"], "content": turn["content"]} for turn in prompt], **given})
    if not kept:
        raise StepError("no prompts are left to train on; see the counts of rows that were left out, and `max_length`")
    return Tokens(Dataset.from_list(kept), counts)


def _prompt_of(renderer: Renderer, row: Mapping[str, Any]) -> tuple[list[Message], int]:
    """Return a prompt's turns and its length in tokens."""
    if _is_blank(row["prompt"] or ""):
        raise Blank("the prompt is empty")
    prompt = as_messages(row["prompt"])
    return prompt, len(renderer.ids(Request(tuple(prompt))))


@contextmanager
def _at(row: Mapping[str, Any]) -> Iterator[None]:
    """Name the row in whatever is wrong with it."""
    try:
        yield
    except (Blank, Aside):
        raise
    except (StepError, EngineError, WrongValue) as error:
        raise StepError(f"row {row.get('uid', '?')}: {error}") from error


def _each(rows: Rows, counts: Counts, read: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
    """Yield what is read from each row; those that are blank are counted and left out."""
    for row in (row for batch in rows.batches() for row in batch.to_pylist()):
        counts.rows += 1
        try:
            with _at(row):
                value = read(row)
        except Aside:
            counts.rows -= 1
            counts.aside += 1
            continue
        except Blank:
            counts.blank += 1
            counts.left_out += 1
            continue
        yield value


def _dataset(records: Iterable[Mapping[str, Any]], kinds: Mapping[str, str]) -> Dataset:
    """Gather records into an Arrow table in chunks (4 bytes a token) and wrap it.

    Raises:
        StepError: there are none.
    """
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    types = {"int32s": pa.list_(pa.int32()), "float": pa.float32()}
    schema = pa.schema([(name, types[kind]) for name, kind in kinds.items()])
    batches: list[pa.RecordBatch] = []
    pending: list[Mapping[str, Any]] = []
    for record in records:
        pending.append(record)
        if len(pending) == 4096:
            batches.append(pa.RecordBatch.from_pylist(pending, schema))
            pending = []
    batches.append(pa.RecordBatch.from_pylist(pending, schema))
    table = pa.Table.from_batches(batches, schema)
    if not table.num_rows:
        raise StepError("no rows are left to train on; see the counts of rows that were left out, and `max_length`")
    return Dataset(InMemoryTable(table))
