"""What a tokenizer's files tell without being loaded: its special tokens, its size, and its chat template, which can be tried.

Renders as the engines do. Never tokenises, and imports no LLM library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from caiflow.engine.errors import EngineError
from caiflow.engine.llm import chat_template
from caiflow.engine.llm.base import Message
from caiflow.engine.llm.files import read_object

_SEES_OTHERS = re.compile(r"loop|namespace|\bset\b|length|messages\s*[^\s%]|last|macro|import|include")
"""What a template has that lays a turn out by the turns around it, or by how many there are."""


class TokenizerFiles:
    """The files of one tokenizer, under the chat template of its model's entry; what they don't tell is None or empty."""

    def __init__(self, folder: Path, chat_template: str = "", variables: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        self._given = chat_template
        self._variables = variables or {}

    @cached_property
    def tokens(self) -> Sequence[str]:
        """The tokens that were added beside the learnt ones, special or not."""
        return [str(token["content"]) for token in self._added]

    @cached_property
    def size(self) -> int | None:
        """One more than the highest id that a text may become."""
        learnt = self._tokenizer.get("model", {}).get("vocab", {})
        ids = [token["id"] for token in self._added]
        ids += learnt.values() if isinstance(learnt, dict) else [len(learnt) - 1] if isinstance(learnt, list) else []
        return max(ids, default=-1) + 1 or None

    @cached_property
    def eos(self) -> str | None:
        """The token at which generation stops unless the template has an end of turn of its own."""
        return self._special("eos_token")

    @cached_property
    def end_of_turn(self) -> str | None:
        """The token with which training teaches to end a turn."""
        return chat_template.end_of_turn(self.render, self.tokens, self.eos) if self.template else self.eos

    @cached_property
    def template(self) -> str:
        """The chat template: the one of the model's entry, else the tokenizer's own; empty where there is none."""
        return chat_template.with_variables(self._given or self._own_template, self._variables)

    @property
    def _own_template(self) -> str:
        own = self._folder / "chat_template.jinja"
        if own.is_file():
            return own.read_text(encoding="utf-8", errors="replace")
        told = self._settings.get("chat_template") or ""
        named = {one["name"]: one["template"] for one in told} if isinstance(told, list) else {"default": told}
        return str(named.get("default", ""))

    @cached_property
    def refuses_system(self) -> bool:
        """Whether the template refuses system turns."""
        return bool(self.template) and chat_template.refuses_system(self.render)

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template has the calls of tools and what those give back."""
        named = "tool" in self.template  # else there's nothing to try
        return named and chat_template.takes_tools(self.render)

    def rewrites_turns(self, *, system: bool) -> bool:
        """Return whether the template rewrites what an assistant said once the conversation goes on."""
        sees_others = _SEES_OTHERS.search(self.template) is not None  # else there's nothing to try
        return sees_others and chat_template.rewrites_turns(self.render, self.end_of_turn, system=system)

    def render(self, messages: Sequence[Message], *, prompt: bool) -> str:
        """Return the text of a conversation; with `prompt`, up to where the assistant is to speak next.

        Raises:
            EngineError: kind `template`: the template refuses it, or is none.
        """
        from caiflow.engine.llm.jinja.chat import laid_out

        return laid_out(self.template, messages, self.special, prompt=prompt)

    @cached_property
    def special(self) -> dict[str, str]:
        """The special tokens that a template is given, by the names it has for them."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return {name: token for name in names if (token := self._special(name)) is not None}

    @cached_property
    def _added(self) -> Sequence[dict[str, Any]]:
        added = self._tokenizer.get("added_tokens")
        return [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []

    def _special(self, name: str) -> str | None:
        token = self._settings.get(name)
        return token.get("content") if isinstance(token, dict) else token

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return {**read_object(self._folder / "special_tokens_map.json"), **read_object(self._folder / "tokenizer_config.json")}

    @cached_property
    def _tokenizer(self) -> dict[str, Any]:
        return read_object(self._folder / "tokenizer.json")


class ModelFiles(NamedTuple):
    """The files of a model that is on this machine: the folder of its weights, and its tokenizer's."""

    folder: Path
    tokenizer: TokenizerFiles


class FileTokenizer:
    """A tokenizer as its `tokenizer.json` has it, with what a renderer asks of one; no library of models is loaded for it.

    One that `trains` has the template's own end of turn as its EOS.
    """

    is_fast = True

    def __init__(self, folder: Path, files: TokenizerFiles, *, trains: bool = False) -> None:
        from tokenizers import Tokenizer

        try:
            self.backend_tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise EngineError(f"{folder / 'tokenizer.json'} can't be read: {error}", kind="load") from error
        self.added_tokens_decoder = self.backend_tokenizer.get_added_tokens_decoder()
        self.chat_template = files.template
        ends = {"eos_token": files.end_of_turn} if trains and files.end_of_turn else {}
        self.special_tokens_map = {**files.special, **ends}
        self.bos_token, self.eos_token = (self.special_tokens_map.get(name) for name in ("bos_token", "eos_token"))
        self.bos_token_id, self.eos_token_id = (self.convert_tokens_to_ids(name) for name in (self.bos_token, self.eos_token))

    def convert_tokens_to_ids(self, token: str | None) -> int | None:
        """Return the id of a token; None where there is none."""
        return None if token is None else self.backend_tokenizer.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text."""
        return list(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens as they are written."""
        return str(self.backend_tokenizer.decode(list(ids), skip_special_tokens=False))

    def __call__(self, text: str, **_: bool) -> dict[str, list[Any]]:
        """Return the ids of a text, and where each one's characters are."""
        coded = self.backend_tokenizer.encode(text, add_special_tokens=False)
        return {"input_ids": coded.ids, "offset_mapping": coded.offsets}
