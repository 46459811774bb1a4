"""Texts made of a record's fields by Jinja. Owns how they are rendered: sandboxed, a missing field or a null being an error."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from caiflow.engine.errors import WrongValue

if TYPE_CHECKING:
    from jinja2 import Template

    from caiflow.engine.llm.jinja.bounded import BoundedSandbox


@lru_cache(maxsize=1)
def _sandbox() -> BoundedSandbox:
    from jinja2 import StrictUndefined

    from caiflow.engine.llm.jinja.bounded import BoundedSandbox

    return BoundedSandbox(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_said)


def _said(value: Any) -> Any:
    if value is None:
        raise WrongValue("a null would be written as `None`", 'say what stands for it, such as `{{ context or "" }}`')
    return value


@lru_cache(maxsize=32)
def compiled(text: str) -> Template:
    """Return the template of a text.

    Raises:
        ValueError: it is no Jinja.
    """
    from jinja2 import TemplateSyntaxError
    from jinja2.exceptions import SecurityError

    from caiflow.engine.llm.jinja.bounded import bounded

    try:
        with bounded():
            return _sandbox().from_string(text)
    except TemplateSyntaxError as error:
        raise WrongValue(f"not a Jinja template: {error.message} (line {error.lineno})", 'such as "{{ context }}"') from None
    except (SecurityError, RecursionError) as error:
        raise WrongValue(f"the template is refused: {error}", "write a simpler one") from None


def _checked(text: str) -> str:
    compiled(text)
    return text


TemplateText = Annotated[str, AfterValidator(_checked)]
"""A template that is read when the spec is."""


def names_in(text: str) -> list[str]:
    """Return the fields that a template speaks of, in the order of their names.

    Raises:
        ValueError: it is no Jinja.
    """
    from jinja2.meta import find_undeclared_variables

    compiled(text)
    return sorted(find_undeclared_variables(_sandbox().parse(text)))


def rendered(text: str, record: Mapping[str, Any], name: str = "the template `prompt`") -> str:
    """Return a template's text for a record; `name` is what the template is called in messages.

    Raises:
        ValueError: the record lacks a field of it or has a null there; it asks for what the sandbox forbids; or it is blank.
    """
    from jinja2 import TemplateError

    from caiflow.engine.llm.jinja.bounded import bounded

    template = compiled(text)
    try:
        with bounded():
            made = template.render(record)
    except WrongValue as error:
        raise WrongValue(f"{name}: {error.message}", error.hint) from error
    except (TemplateError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
        raise WrongValue(f"{name}: {error}", f"the record has {', '.join(record)}") from error
    if not made.strip():
        raise ValueError(f"{name} comes out blank")
    return made
