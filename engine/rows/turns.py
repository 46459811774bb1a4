"""Whether a model's chat template takes the conversations that rows have, as far as both are known. Reads no row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from caiflow.engine.errors import Finding
from caiflow.engine.rows.columns import Columns

if TYPE_CHECKING:
    from caiflow.engine.llm.tokenizer_files import ModelFiles

ANOTHER_TEMPLATE = "give the model's entry another `chat_template`"


def refused_systems(
    inputs: Mapping[str, Columns], column: str, model: str, models: Mapping[str, ModelFiles], field: str = "input"
) -> Iterator[Finding]:
    """Yield the inputs in which some rows' `column` has a system turn, where the model's chat template refuses those."""
    for step, columns in inputs.items():
        turns = columns.turns.get(column)
        if model in models and turns and turns.system and models[model].tokenizer.refuses_system:
            have = f"{turns.system} of {turns.rows} rows of `{step}` have"
            told = f"the chat template of `{model}` refuses system turns, which {have}"
            yield Finding((field,), told, f"{ANOTHER_TEMPLATE}, or load the rows without them")
