"""What all outputs of `--json` share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """What is printed; `shape` names it."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class Output(Shape):
    """What a command prints as one JSON object."""

    shape: str
    """Name and version of this shape, such as `plan/1`."""
