"""Whether what a training learns is, token for token, what an engine samples under a model's chat template; and where it isn't.

Lays out a few conversations by the code that serves and by that which trains, over the tokenizer's own files. Loads no model
and no library of models. What it can't see: a model may spell words with other tokens than its tokenizer does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from caiflow.engine.errors import CaiflowError
from caiflow.engine.llm.base import Message, Request
from caiflow.engine.llm.chat_template import TOOL_TALK
from caiflow.engine.llm.files import template_text
from caiflow.engine.llm.model_files import model_folder
from caiflow.engine.llm.render import THOUGHTS, Renderer
from caiflow.engine.llm.tokenizer_files import FileTokenizer, TokenizerFiles
from caiflow.engine.training.operator import TrainingOperator
from caiflow.engine.training.sampled import apart
from caiflow.engine.training.tokens import IGNORED, labelled, reply_ids

if TYPE_CHECKING:
    from caiflow.engine.spec.grammar import Spec

_ASKED: tuple[Message, ...] = ({"role": "user", "content": "How do I bake?"},)
TALKS: Mapping[str, tuple[Message, ...]] = {
    "a question": _ASKED,
    "a question after others": (*_ASKED, {"role": "assistant", "content": "Find a cake."}, {"role": "user", "content": "And?"}),
    "a question under a system turn": ({"role": "system", "content": "Be kind."}, *_ASKED),
}
WORDS = ("Quite.", "Yes: é 1\n\n- two")
_OPENED = 12
"""Characters at a prompt's end among which a thought may be opened."""
_EDGES = {"begins": "\n\nQuite.", "ends": "Quite. \n"}

Renderers = tuple[Renderer, Renderer]
"""A model's renderer as an engine has it, and as a training does."""


class Learnt(NamedTuple):
    """What was found of one training; `parts` are the places where learnt tokens part from sampled ones.

    `checked` is false where the model's tokenizer isn't on this machine, or is of a kind that can't be read from its files.
    """

    step: str
    checked: bool
    parts: tuple[str, ...] = ()


def learnt_tokens(spec: Spec) -> Iterator[Learnt]:
    """Yield what is known of each training of a spec that replies are learnt or drawn in, in the order of the file."""
    known: dict[str, Renderers | None] = {}
    for name, operator in spec.operators.items():
        params: Any = spec.steps[name].params
        if not isinstance(operator, TrainingOperator) or not (origin := _origin(spec, getattr(params, "model", None))):
            continue
        if origin not in known:
            known[origin] = _renderers(spec, origin)
        loss_on = getattr(params, "loss_on", "completion")
        found = known[origin]
        told = tuple(parting(*found, loss_on, tools=operator.takes_tools)) if found else ()
        yield Learnt(name, found is not None, told)


def renderers(files: TokenizerFiles, folder: Path) -> Renderers:
    """Return the renderers of a tokenizer's files: as an engine has it, and as a training does.

    Raises:
        EngineError: they can't be read.
    """
    return Renderer(FileTokenizer(folder, files)), Renderer(FileTokenizer(folder, files, trains=True))


def parting(serves: Renderer, trains: Renderer, loss_on: Any = "completion", *, tools: bool = False) -> Iterator[str]:
    """Yield each place where what is learnt isn't what is sampled; with `tools`, calls of tools are learnt, too."""
    for talk, turns in TALKS.items():
        try:
            served = serves.ids(Request(turns))
        except CaiflowError:
            continue  # a template that refuses such a conversation: no engine answers it, either
        for words in WORDS:
            head, learnt = reply_ids(trains, turns, {"role": "assistant", "content": words})
            said, _ = serves.answer(Request(turns), learnt[:-1], head)
            if head != served:
                yield f"the prompt of {talk}: {apart(trains, served, head)}"
                break
            if said != words:
                yield f"the reply to {talk}: {words!r} is read as {said!r}"
            else:
                yield from _in_loss(trains, talk, turns, words, (head, learnt), loss_on)
    yield from _at_edges(trains)
    yield from _with_thoughts(serves, trains)
    if tools and trains.takes_tools:
        yield from _of_tools(serves, trains, loss_on)


def _in_loss(
    renderer: Renderer, talk: str, turns: Sequence[Message], words: str, wanted: tuple[list[int], list[int]], loss_on: Any
) -> Iterator[str]:
    """Yield where the last reply's tokens that carry loss aren't those that were sampled after the prompt."""
    head, sampled = wanted
    try:
        ids, labels = labelled(renderer, [*turns, {"role": "assistant", "content": words}], loss_on)
    except CaiflowError:
        return  # it can't be learnt so, which `validate` and the training say
    if ids != head + sampled:
        yield f"the reply to {talk}: {apart(renderer, head + sampled, ids)}"
    elif any(label == IGNORED for label in labels[len(head) :]):
        yield f"the reply to {talk}: some of its tokens carry no loss"


def _at_edges(renderer: Renderer) -> Iterator[str]:
    """Yield whether white space around a reply, which an engine may sample and keeps, is lost when it is learnt."""
    turns = TALKS["a question"]
    try:
        sampled = reply_ids(renderer, turns, {"role": "assistant", "content": WORDS[0]})[1]
    except CaiflowError:
        return
    if sampled[:-1] != renderer.words(WORDS[0]):
        return  # the template writes something around the words, white space among it
    for edge, words in _EDGES.items():
        learnt = reply_ids(renderer, turns, {"role": "assistant", "content": words})[1]
        wanted = [*renderer.words(words), sampled[-1]]
        if learnt != wanted:
            yield f"a reply that {edge} with white space: {apart(renderer, wanted, learnt)}"


def _with_thoughts(serves: Renderer, trains: Renderer) -> Iterator[str]:
    """Yield what becomes of a thought that is sampled before a reply, and of one that a row's own reply has in it.

    Only of marks that the template knows. The reply by itself is what `generate` keeps; with its thought it comes from data.
    """
    turns = TALKS["a question"]
    for begin, end in THOUGHTS.items():
        if end not in trains.chat_template:
            continue
        opened = begin in trains.text(Request(turns))[-_OPENED:]
        thinking = f"{'' if opened else begin}\nHm.\n{end}\n\n{WORDS[0]}"
        try:
            head, learnt = reply_ids(trains, turns, {"role": "assistant", "content": WORDS[0]})
            whole = reply_ids(trains, turns, {"role": "assistant", "content": f"{begin}\nHm.\n{end}\n\n{WORDS[0]}"})[1]
        except CaiflowError:
            return
        sampled = [*trains.tokenizer.encode(thinking, add_special_tokens=False), learnt[-1]]
        said = serves.answer(Request(turns), sampled[:-1], head)
        if said != (WORDS[0], "Hm."):
            yield f"a reply after a thought: {said[0]!r} is read as its words"
        yield f"a reply after a thought, of which the words alone are learnt: {apart(trains, sampled, learnt)}"
        if whole != sampled:
            yield f"a reply with a thought in its text: {apart(trains, sampled, whole)}"


def _of_tools(serves: Renderer, trains: Renderer, loss_on: Any) -> Iterator[str]:
    """Yield where the call of a tool, or the reply to what it gave back, isn't learnt as it is sampled."""
    asked, answered = TOOL_TALK[:2], TOOL_TALK
    try:
        (ids, marks), (after, later) = (labelled(trains, list(talk), loss_on) for talk in (asked, answered))
        heads = [serves.prompt_ids(talk[:-1]) for talk in (asked, answered)]
    except CaiflowError:
        return  # it can't be learnt so, which `validate` and the training say
    for what, found, counts, head in zip(
        ("the call of a tool", "a reply after a tool"), (ids, after), (marks, later), heads, strict=True
    ):
        if found[: len(head)] != head:
            yield f"the prompt of {what}: {apart(trains, head, found)}"
        elif IGNORED in counts[len(head) :]:
            yield f"{what}: some of its tokens carry no loss"


def _origin(spec: Spec, name: str | None) -> str:
    """Return the entry of the model that a step trains, whose template the trained one has too; empty where it has none."""
    while name and name in spec.steps and name not in spec.models:
        name = getattr(spec.steps[name].params, "model", None)
    return name if name and name in spec.models else ""


def _renderers(spec: Spec, origin: str) -> Renderers | None:
    """Return the renderers of an entry's model from its files; None where they aren't here, or have no template."""
    entry = spec.models[origin]
    if entry.served:
        return None
    folder = model_folder(entry.tokenizer or entry.source, None if entry.tokenizer else entry.revision, spec.base_dir)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    files = TokenizerFiles(folder, template_text(entry.chat_template, spec.base_dir), entry.chat_template_kwargs)
    try:
        return renderers(files, folder) if files.template else None
    except CaiflowError:
        return None
