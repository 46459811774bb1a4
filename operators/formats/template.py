"""Prompts made of a record's fields by a Jinja text. Owns how they are rendered: sandboxed, a missing field being an error."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import WrongValue

if TYPE_CHECKING:
    from jinja2 import Template


@lru_cache(maxsize=8)
def compiled(text: str) -> Template:
    """Return the template of a text.

    Raises:
        ValueError: it is no Jinja.
    """
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        return sandbox.from_string(text)
    except TemplateSyntaxError as error:
        raise WrongValue(f"no Jinja template: {error.message} (line {error.lineno})", 'such as "{{ context }}"') from None


def rendered(text: str, record: Mapping[str, Any]) -> str:
    """Return a template's text for a record.

    Raises:
        ValueError: the record lacks a field of it, or it asks for what the sandbox forbids, or it comes out blank.
    """
    from jinja2 import TemplateError

    try:
        made = compiled(text).render(record)
    except (TemplateError, TypeError, ArithmeticError, LookupError) as error:
        raise WrongValue(f"the template `prompt`: {error}", f"the record has {', '.join(record)}") from error
    if not made.strip():
        raise ValueError("the template `prompt` comes out blank")
    return made
