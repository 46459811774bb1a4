"""How a request becomes token ids and token ids become text, for generating, training and serving alike.

Owns the chat template (applied exactly once), the assistant's prefill, BOS, the token of each choice and the mask of what an
assistant wrote. Special tokens are those of the template alone: what a turn, a prefill or a plain text spells is text.
Never runs a model and imports no LLM library: it is built around a tokenizer that somebody else loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import compress
from typing import Any, TypeVar

from caiflow.engine.errors import EngineError
from caiflow.engine.llm import chat_template
from caiflow.engine.llm.base import Completion, Message, Request
from caiflow.engine.llm.chat_template import frame
from caiflow.engine.llm.special_tokens import SpecialTokens

T = TypeVar("T")
_PROBES = ("word", " two words", "\n\nLine: a", "  x ", "é1\n")
_SEGMENTS = 16_384
_TAIL = 48
THOUGHTS = {"<think>": "</think>", "<thinking>": "</thinking>", "[THINK]": "[/THINK]"}
"""The marks at which models that reason begin a thought, and those at which they end it."""
_THINKS = re.compile(rf"\s*({'|'.join(map(re.escape, THOUGHTS))})")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A whole conversation as a trainer reads it; `mask` is 1 on the tokens an assistant wrote, its end of turn included."""

    ids: list[int]
    mask: list[int]

    def counted(self, values: Sequence[T]) -> tuple[T, ...]:
        """Return the values of the tokens whose mask is 1; `values` has one per token after the first."""
        return tuple(compress(values, self.mask[1:]))


def scored_completion(rendered: Rendered, values: Sequence[tuple[float, bool]]) -> Completion:
    """Return the answer to a request with `score`, given each later token's log-probability and whether it is the likeliest."""
    logprobs, greedy = zip(*rendered.counted(values), strict=True)
    return Completion("", "stop", len(rendered.ids), prompt_logprobs=logprobs, greedy=all(greedy))


class Renderer:
    """Renders for one tokenizer; `chat_template` replaces the tokenizer's own where it isn't empty."""

    def __init__(self, tokenizer: Any, chat_template: str = "") -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template or own_template(tokenizer)
        self._encode_text = _plain_encoder(tokenizer)
        self._decode_ids = _plain_decoder(tokenizer)
        self._before = _ids_before_text(tokenizer)
        self._special = SpecialTokens(tokenizer)
        self._segment = lru_cache(maxsize=_SEGMENTS)(lambda text: tuple(self._encode_text(text)))
        self._splitter = self._find_splitter()
        self._frame = lru_cache(maxsize=16)(lambda given: frame(self._template(given), self.end_of_turn))
        self._end_of_turn = lru_cache(maxsize=16)(self._find_end_of_turn)
        self._choice_ids: dict[tuple[str, tuple[str, ...], str], Mapping[str, int]] = {}
        self.keeps_space = self.decode(self._encode_text("x y")[1:]).startswith(" ")

    @cached_property
    def end_of_turn(self) -> str | None:
        """The token with which the chat template ends an assistant's turn; the tokenizer's EOS where it has none of its own."""
        return self._end_of_turn("")

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the chat template has the calls of tools and what those give back."""
        return chat_template.takes_tools(self._template(""))

    def text(self, request: Request) -> str:
        """Return the text that the model continues: the templated conversation, or the plain prompt, and the prefill.

        Raises:
            EngineError: there is no chat template, or it refuses the conversation.
        """
        return self._special.said(self._laid_out(request))

    def _laid_out(self, request: Request) -> str:
        if isinstance(request.prompt, str):
            return self._special.quoted(request.prompt + request.prefill)
        turns = self._special.quoted_turns(request.prompt)
        return self._apply(turns, request.template, prompt=True) + self._special.quoted(request.prefill)

    def prompt_ids(self, messages: Sequence[Message], tools: Any = None) -> list[int]:
        """Return the ids of a conversation up to where the assistant is to speak next, as `ids` does; `tools` are those it has.

        Raises:
            EngineError: as `ids`.
        """
        turns, tools = self._special.quoted_turns(messages), self._special.quoted_value(tools)
        return self._ids(self._apply(turns, "", prompt=True, tools=tools), raw=False)

    def spells_tokens(self, messages: Sequence[Message]) -> bool:
        """Return whether a text of the conversation spells a special token, which who renders it may take for one."""
        return self._special.quoted_turns(messages) is not messages

    def words(self, text: str) -> list[int]:
        """Return the token ids of a text by itself."""
        return self._encode(self._special.quoted(text))

    def ids(self, request: Request) -> list[int]:
        """Return the prompt's token ids, with BOS once where the tokenizer or the template wants it.

        Raises:
            EngineError: as `text`; the prompt is empty; or it begins with two BOS tokens.
        """
        return self._ids(self._laid_out(request), raw=isinstance(request.prompt, str))

    def scored(self, request: Request) -> Rendered:
        """Return the ids of a prompt that is itself to be scored, with the mask of the tokens that count (see `Request`).

        Raises:
            EngineError: as `ids` and `conversation`; or nothing counts.
        """
        if request.prefill or isinstance(request.prompt, str):
            ids = self.ids(request)
            given = len(self.ids(request._replace(prefill=""))) if request.prefill and request.prompt else len(self._before)
            rendered = Rendered(ids, [int(place >= max(1, given)) for place in range(len(ids))])
        else:
            rendered = self.conversation(request.prompt, request.template)
            rendered.mask[0] = 0  # nothing stands before it to predict it from
        if not any(rendered.mask):
            said = "says nothing by an assistant" if not isinstance(request.prompt, str) else "is too short"
            raise EngineError(f"the text {said}: it has no token to score", "leave it out", kind="empty")
        return rendered

    def choices(self, request: Request) -> Mapping[str, int]:
        """Return the token id of each choice right after the prompt and prefill.

        Raises:
            EngineError: a choice is more than one token there, or two choices are the same token.
        """
        text = self._laid_out(request)
        key = (request.prefill[-_TAIL:] or text[-_TAIL:], request.choices, request.template)
        found = self._choice_ids.get(key)
        if found is None:
            found = {choice: self._choice_id(text, choice) for choice in request.choices}
            if len(set(found.values())) != len(request.choices):
                raise EngineError(f"two of the choices {request.choices} are the same token", kind="choices")
            if len(self._choice_ids) >= _SEGMENTS:
                self._choice_ids.clear()
            self._choice_ids[key] = found
        return found

    def ends(self, request: Request) -> frozenset[int]:
        """Return the tokens that end an answer whatever the model's own settings say: the end of turn of its chat template.

        A base model may bring the template of chats and the EOS of documents: it would go on with turns of its own making.
        """
        end = None if isinstance(request.prompt, str) else self._end_of_turn(request.template)
        number = None if end is None else self.tokenizer.convert_tokens_to_ids(end)
        return frozenset() if number is None else frozenset([int(number)])

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> str:
        """Return the text of an answer's `ids`, without special tokens; `before` are prompt ids that end where it begins.

        They matter to tokenizers that swallow the first space of a text.
        """
        if not before or self.keeps_space:
            return self._decode_ids(ids)
        tail = list(before[-4:])
        head = self._decode_ids(tail)
        whole = self._decode_ids([*tail, *ids])
        return whole[len(head) :] if whole.startswith(head) else self._decode_ids(ids)

    def answer(
        self, request: Request, ids: Sequence[int], before: Sequence[int], *, cut: bool = False
    ) -> tuple[str, str | None]:
        """Return the words of an answer's `ids` to a request whose own ids are `before`, and the thought that came first.

        What the chat template writes around a reply's words (a space, the name of a channel) isn't part of them: the template
        writes it again when the reply is learnt, or stands in a later prompt. A thought that doesn't end leaves no words; where
        the prompt opens it, only an answer that was `cut` off has none: who was taught to reply at once never ends it.
        """
        if isinstance(request.prompt, str) or request.prefill:
            return self.decode(ids, before), None
        opening, closing = self._frame(request.template)
        skipped = self._begin(ids, opening) if opening.strip() else 0
        words = self.decode(ids[skipped:], [*before, *ids[:skipped]])
        if skipped:
            return words.removesuffix(closing), None
        begun = self._thinks(ids, before)
        if begun and (begun[0] or cut or begun[1] in ids):
            thought, rest = _split(ids, begun)
            return self.decode(rest).lstrip().removesuffix(closing), self.decode(thought).strip()
        said, thinking = thought_apart(words.removeprefix(opening))
        return said.removesuffix(closing), thinking

    def _thinks(self, ids: Sequence[int], before: Sequence[int]) -> tuple[int, int] | None:
        """Return how many of the ids open a thought (0 where the prompt does), and the token that ends it; None without one."""
        if ids and ids[0] in self._marks:
            return 1, self._marks[ids[0]]
        ends = [end for token in before[-4:] if (end := self._marks.get(token, token)) in self._marks.values()]
        return (0, ends[-1]) if ends and ends[-1] not in before[-4:] else None

    @cached_property
    def _marks(self) -> Mapping[int, int]:
        """The tokens that begin a thought, with those that end it, where the tokenizer has such."""
        added = {token.content: number for number, token in getattr(self.tokenizer, "added_tokens_decoder", {}).items()}
        return {added[begin]: added[end] for begin, end in THOUGHTS.items() if begin in added and end in added}

    def _begin(self, ids: Sequence[int], opening: str) -> int:
        """Return how many of the ids are what the template opens a reply with; 0 where they aren't."""
        written = [str(self.tokenizer.decode(list(ids[:end]))) for end in range(1, min(len(ids), _TAIL) + 1)]
        return next((end for end, text in enumerate(written, start=1) if text == opening), 0)

    def conversation(
        self, messages: Sequence[Message], template: str = "", *, last: bool = False, tools: Any = None
    ) -> Rendered:
        """Return a finished conversation with the mask of the assistant's tokens; an end-of-turn token is added if missing.

        With `last`, only the last turn is marked, which templates that rewrite earlier ones allow too. `tools` are those that
        the template is to tell of.

        Raises:
            EngineError: the template is missing, refuses the conversation, or rewrites earlier turns when later ones follow.
        """
        turns, tools = self._special.quoted_turns(messages), self._special.quoted_value(tools)
        text, spans = chat_template.spans(self._template(template, tools), turns, self.end_of_turn, last=last)
        ids, offsets = self._encode_with_offsets(text)
        mask = [int(any(start < b and a < end for a, b in spans)) for start, end in offsets]
        if spans and spans[-1][1] == len(text) and self.end_of_turn is not None:
            ending = self.tokenizer.convert_tokens_to_ids(self.end_of_turn)
            if ending not in ids[_last_begins(mask) :]:
                ids, mask = [*ids, ending], [*mask, 1]
        self._check_bos(ids)
        return Rendered(ids, mask)

    def _find_end_of_turn(self, template: str) -> str | None:
        added = [token.content for token in getattr(self.tokenizer, "added_tokens_decoder", {}).values()]
        return chat_template.end_of_turn(self._template(template), added, self.tokenizer.eos_token)

    def _template(self, template: str, tools: Any = None) -> chat_template.Render:
        return partial(self._apply, template=template, tools=tools)

    def _apply(self, messages: Sequence[Message], template: str, *, prompt: bool, tools: Any = None) -> str:
        chosen = template or self.chat_template
        if not chosen:
            raise EngineError(
                "the tokenizer has no chat template",
                "give `chat_template` in the model's entry, or ask for a raw completion",
                kind="template",
            )
        from caiflow.engine.llm.jinja.chat import laid_out

        return laid_out(chosen, messages, self.tokenizer.special_tokens_map, prompt=prompt, tools=tools)

    def _ids(self, text: str, *, raw: bool) -> list[int]:
        ids = self._encode(text)
        if raw and ids[: len(self._before)] != self._before:
            ids = [*self._before, *ids]
        if not ids:
            raise EngineError("the prompt is empty", "there is nothing to continue", kind="empty")
        self._check_bos(ids)
        return ids

    def _check_bos(self, ids: Sequence[int]) -> None:
        bos = self.tokenizer.bos_token_id
        if bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos and bos != self.tokenizer.eos_token_id:
            raise EngineError(
                f"the prompt begins with two BOS tokens ({self.tokenizer.bos_token!r})",
                "the template or the prompt has one too many",
                kind="double_bos",
            )

    def _encode(self, text: str) -> list[int]:
        if self._special.marked(text):
            return self._special.read(text)[0]
        if self._splitter is None:
            return self._encode_text(text)
        ids: list[int] = []
        for part in self._splitter.split(text):
            if part:
                ids.extend(self._segment(part))
        return ids

    def _find_splitter(self) -> re.Pattern[str] | None:
        """Return a pattern of the special tokens at which a text may be cut, so that known turns needn't be encoded again.

        None where the tokenizer reads a text differently after such a cut.
        """
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        specials = [t.content for t in added if t.special and not (t.lstrip or t.rstrip or t.single_word or t.normalized)]
        if not specials:
            return None
        pattern = re.compile("(" + "|".join(re.escape(token) for token in sorted(specials, key=len, reverse=True)) + ")")
        for special in specials[:8]:
            for left, right in zip(_PROBES, (*_PROBES[1:], _PROBES[0]), strict=True):
                pieces = [self._encode_text(piece) for piece in (left, special, right)]
                if self._encode_text(left + special + right) != [*pieces[0], *pieces[1], *pieces[2]]:
                    return None
        return pattern

    def _choice_id(self, text: str, choice: str) -> int:
        before, after = self._encode(text), self._encode(text + choice)
        if len(after) != len(before) + 1 or after[: len(before)] != before:
            raise EngineError(
                f"the choice {choice!r} is not one token after {text[-24:]!r}",
                "end the prefill where the tokenizer splits, or use shorter choices",
                kind="choices",
            )
        return after[-1]

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        if self._special.marked(text) and self.tokenizer.is_fast:
            return self._special.read(text)
        try:
            coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise EngineError(
                "the tokenizer gives no character offsets", "training needs a fast tokenizer", kind="template"
            ) from error
        return list(coded["input_ids"]), [tuple(pair) for pair in coded["offset_mapping"]]


def thought_apart(said: str) -> tuple[str, str | None]:
    """Return the words of an answer and the thought in marks at its head; no words where the thought doesn't end."""
    begun = _THINKS.match(said)
    if begun is None:
        return said, None
    thought, _, words = said[begun.end() :].partition(THOUGHTS[begun[1]])
    return words.lstrip(), thought.strip()


def unanswered(whose: str) -> EngineError:
    """Return the error for an answer that is a thought and nothing else."""
    return EngineError(f"{whose} has no text after its reasoning", "raise `max_tokens`, or let it reason less", kind="empty")


def _split(ids: Sequence[int], begun: tuple[int, int]) -> tuple[Sequence[int], Sequence[int]]:
    """Return the ids of a thought and those behind it, given where it begins and the token that ends it."""
    start, ends = begun
    end = next((place for place in range(start, len(ids)) if ids[place] == ends), len(ids))
    return ids[start:end], ids[end + 1 :]


def own_template(tokenizer: Any) -> str:
    """Return a tokenizer's chat template, of several the one for plain chat; empty where it has none."""
    own = tokenizer.chat_template or ""
    return str(own.get("default", "")) if isinstance(own, Mapping) else str(own)


def _last_begins(mask: Sequence[int]) -> int:
    """Return where the ones at the end of a mask begin."""
    return max((index + 1 for index, value in enumerate(mask) if not value), default=0)


def _plain_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return text -> ids without added special tokens; the Rust tokenizer itself where there is one (a third of the time)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False))
    backend.no_truncation()
    backend.no_padding()
    return lambda text: list(backend.encode(text, add_special_tokens=False).ids)


def _plain_decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return lambda ids: str(backend.decode(list(ids), skip_special_tokens=True))


def _ids_before_text(tokenizer: Any) -> list[int]:
    """Return the ids (BOS, mostly) that the tokenizer puts before a plain text."""
    bare = list(tokenizer.encode("a", add_special_tokens=False))
    full = list(tokenizer.encode("a", add_special_tokens=True))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []
