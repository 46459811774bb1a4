"""Which trials there are, in the order in which they are made. Imports nothing of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from caiflow.engine.errors import SpecError, suggest

LIMIT_S = 300.0
"""What a trial may take; most take a tenth of it, but a first start on a GPU compiles."""


class Trial(NamedTuple):
    """One process that reports on `parts`, in their order; `body` is a function, as `module:name`, that yields the checks."""

    name: str
    body: str
    parts: tuple[str, ...]
    limit_s: float = LIMIT_S


_HERE = "caiflow.engine.commands.trials"
TRIALS = (
    Trial("transformers", f"{_HERE}.engines:transformers", ("transformers",)),
    Trial(
        "vllm",
        f"{_HERE}.engines:vllm",
        ("vllm starts", "vllm answers", "vllm scores", "vllm choices", "vllm memory", "vllm adapter"),
    ),
    Trial("training", f"{_HERE}.trainings:formats", ("train float32", "train bfloat16")),
    Trial("quantised", f"{_HERE}.trainings:quantised", ("train 4 bits",)),
    Trial("spread", f"{_HERE}.trainings:spread", ("train on all",)),
    Trial("ray", f"{_HERE}.runs:workers", ("ray workers",)),
    Trial("hand-over", f"{_HERE}.runs:hand_over", ("hand-over",)),
)
NAMES = tuple(trial.name for trial in TRIALS)


def chosen(names: Iterable[str]) -> list[Trial]:
    """Return the trials of these names, or all where none is named.

    Raises:
        SpecError: no trial has one of the names.
    """
    wanted = list(names)
    for name in wanted:
        if name not in NAMES:
            raise SpecError(f"doctor --try: no trial {name!r}; {suggest(name, NAMES, 'trials')}")
    return [trial for trial in TRIALS if not wanted or trial.name in wanted]
