"""Keeps a chat template's special tokens apart from the same words in anybody's text, which stay words.

A text is quoted before a template lays it out: a mark, of which Unicode keeps texts free, goes behind the first letter of each
special token that it spells. What is laid out is then read: a special token without a mark is that token, one with a mark is
its letters, split into tokens as any word is. Texts that spell none aren't touched, nor read here. Knows no template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from caiflow.engine.llm.base import Message

Read = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and where in the text each one's characters are."""

_MARK, _STANDS_FOR = "\ufdd0", "\ufdd1"
_FREED = str.maketrans({_MARK: "\ufffd", _STANDS_FOR: "\ufffd"})
_FIRST_NAME = 0xF0000
_PROBES = ("a", " b c", "\n\nd", "  ", "é.\n")


class SpecialTokens:
    """The special tokens of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._tokens = {token.content: (number, token) for number, token in added.items() if _is_marker(token)}
        names = "|".join(re.escape(name) for name in sorted(self._tokens, key=len, reverse=True)) or "(?!)"
        self._first_letters = {name[0] for name in self._tokens} | {_MARK, _STANDS_FOR}
        self._spelled = re.compile(f"[{_MARK}{_STANDS_FOR}]|{names}")
        self._begun = re.compile(f"(?=(?:{names}))(.)", re.DOTALL)
        self._laid_out = re.compile(f"{_MARK}|{names}")

    def spelled(self, text: str) -> bool:
        """Return whether the text spells a special token; most texts have none of their first letters."""
        return any(letter in text for letter in self._first_letters) and self._spelled.search(text) is not None

    def quoted(self, text: str) -> str:
        """Return the text with a mark in every special token that it spells."""
        if not self.spelled(text):
            return text
        return self._begun.sub(rf"\1{_MARK}", text.translate(_FREED))

    def quoted_turns(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the conversation with its texts quoted; the same one where there is nothing to quote."""
        if not any(self.spelled(text) for turn in messages for text in _texts(list(turn.values()))):
            return messages
        return [{name: self.quoted_value(item) for name, item in turn.items()} for turn in messages]  # type: ignore[misc]

    def quoted_value(self, value: Any) -> Any:
        """Return a value of JSON with all texts in it quoted, the names of its fields too."""
        if isinstance(value, str):
            return self.quoted(value)
        if isinstance(value, dict):
            return {self.quoted_value(name): self.quoted_value(item) for name, item in value.items()}
        return [self.quoted_value(item) for item in value] if isinstance(value, list) else value

    @staticmethod
    def marked(text: str) -> bool:
        """Return whether a text that was laid out has something quoted in it, so that it is to be read here."""
        return _MARK in text

    @staticmethod
    def said(text: str) -> str:
        """Return the text without marks."""
        return text.replace(_MARK, "")

    def read(self, text: str) -> Read:
        """Return the tokens of a text that was laid out; places are those in the text as it is, marks included."""
        if self._apart is None:
            return self._read_in_pieces(text)
        tokenizer, tokens = self._apart
        renamed, places = self._renamed(text)
        coded = tokenizer.encode(renamed, add_special_tokens=False)
        if not set(coded.ids).isdisjoint(tokens.values()):  # a vocabulary that has a token's name as a word
            return self._read_in_pieces(text)
        offsets = [(places[start], places[end - 1] + 1 if end > start else places[start]) for start, end in coded.offsets]
        return [tokens.get(number, number) for number in coded.ids], offsets

    def _renamed(self, text: str) -> tuple[str, list[int]]:
        """Return the text without marks and with the tokens' other names, and where each of its characters comes from."""
        parts: list[str] = []
        places: list[int] = []
        done = 0
        for found in self._laid_out.finditer(text):
            start, end = found.span()
            parts.append(text[done:start])
            places.extend(range(done, start))
            if found[0] != _MARK:
                parts.append(self._names[found[0]])
                places.extend((start, end - 1))
            done = end
        return "".join([*parts, text[done:]]), [*places, *range(done, len(text) + 1)]

    @cached_property
    def _names(self) -> dict[str, str]:
        return {name: f"{_STANDS_FOR}{chr(_FIRST_NAME + place)}" for place, name in enumerate(self._tokens)}

    @cached_property
    def _apart(self) -> tuple[Any, dict[int, int]] | None:
        """Return a tokenizer that knows special tokens by other names alone, and which token each name is.

        None where there is no such tokenizer, or where it reads a name otherwise than the token.
        """
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        from tokenizers import AddedToken, Tokenizer

        tokenizer = Tokenizer.from_str(backend.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        named = [
            AddedToken(self._names[name], special=False, **{flag: getattr(token, flag) for flag in flags})
            for name, (_, token) in self._tokens.items()
        ]
        tokenizer.add_tokens(named)
        tokenizer.encode_special_tokens = True
        tokens: dict[int, int] = {
            tokenizer.token_to_id(self._names[name]) or 0: number for name, (number, _) in self._tokens.items()
        }
        for name in list(self._tokens)[:8]:
            for left, right in zip(_PROBES, (*_PROBES[1:], _PROBES[0]), strict=True):
                ids = tokenizer.encode(f"{left}{self._names[name]}{right}", add_special_tokens=False).ids
                if [tokens.get(number, number) for number in ids] != backend.encode(
                    f"{left}{name}{right}", add_special_tokens=False
                ).ids:
                    return None
        return tokenizer, tokens

    def _read_in_pieces(self, text: str) -> Read:
        """Return the tokens of a text that is cut at its marks: no piece has a whole quoted token."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        done = 0
        for piece in text.split(_MARK):
            coded = self._tokenizer(piece, add_special_tokens=False, return_offsets_mapping=self._tokenizer.is_fast)
            ids += coded["input_ids"]
            offsets += [(start + done, end + done) for start, end in coded.get("offset_mapping", ())]
            done += len(piece) + 1
        return ids, offsets


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(name)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _is_marker(token: Any) -> bool:
    return bool(token.special) and len(token.content) > 1
