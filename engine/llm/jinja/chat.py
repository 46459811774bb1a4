"""A chat template laid out under a bound: the same where it is checked and where it is run.

Gives a template what transformers gives it, so that the same text comes of it. Owns no template, and imports no LLM library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import Template, nodes
from jinja2.parser import Parser

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Message
from caiflow.engine.llm.jinja.bounded import BoundedSandbox, bounded, measured


def laid_out(
    template: str,
    messages: Sequence[Message],
    special: Mapping[str, str],
    *,
    prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Return the text of a conversation; with `prompt`, up to where the assistant is to speak next.

    `special` has the special tokens by their names, as `bos_token`.

    Raises:
        EngineError: kind `template`: the template refuses the conversation, asks too much, or is none.
    """
    try:
        if not messages:
            raise ValueError("it has no turn")
        with bounded():
            given = {"messages": list(messages), "tools": tools, "documents": None, "add_generation_prompt": prompt}
            return _compiled(template).render(**{**given, **special})
    except Exception as error:  # a template is user text: whatever it raises is the user's to read
        raise EngineError(f"the chat template refuses the conversation: {error}", kind="template") from error


def refuse_unreadable(template: str) -> None:
    """Raise where a text is no chat template at all, whatever it is given.

    Raises:
        ValueError: says in which line, and what is wrong there.
    """
    try:
        with bounded():
            _compiled(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.message}") from error
    except Exception as error:  # what the sandbox doesn't allow, or what asks too much
        raise ValueError(str(error)) from error


class _Generation(jinja2.ext.Extension):
    """Takes `generation`, which only marks for trainers what an assistant says, as its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    sandbox = BoundedSandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = _as_json
    sandbox.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return sandbox.from_string(template)


def _as_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return a value as JSON without escapes for HTML, as transformers has it."""
    if isinstance(indent, int) and indent > _WIDEST:
        raise ValueError(f"`tojson` is given too large a number, {indent}")
    return json.dumps(measured(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


_WIDEST = 64


def _refuse(message: str) -> None:
    raise EngineError(str(message), kind="template")


def _now(form: str) -> str:
    return datetime.now().strftime(form)
