"""Trains by every trainer over 4 and 8 bits and prints, as a table in Markdown, the loss in training beside the loss as loaded.

Run `python -m benchmarks.qlora` within tests/; `--model` takes another model than the bundled one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from caiflow.engine.llm.base import ModelSource
from support.trainings import TRAINERS, reward_model, train

MODEL = Path(__file__).parents[2] / "examples/tiny/model"
WAYS: dict[str, Any] = {"merged": True, "merged into the original weights": "original", "kept apart": False}
HEAD = ("trainer", "bits", "adapters", "loss in training", "loss as loaded", "difference")


def lines(model: ModelSource, trainers: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each line, one training each."""
    with tempfile.TemporaryDirectory() as folder:
        judge = reward_model(Path(folder) / "judge", model)
        for trainer in trainers:
            for bits in ("4bit", "8bit"):
                for way, merge in WAYS.items():
                    if trainer == "reward" and merge is False:
                        continue  # a reward model is saved whole
                    place = Path(folder) / f"{trainer}-{bits}-{way}"
                    lora = {"rank": 8, "quantization": bits}
                    found = train(place, trainer, model, judge, learning_rate=1e-3, lora=lora, merge=merge).metrics
                    before, after = found["trained_loss"], found["saved_loss"]
                    yield trainer, bits[0], way, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    given = parser.parse_args()
    for row in (HEAD, ["---"] * len(HEAD)):
        print(f"| {' | '.join(row)} |")
    for cells in lines(ModelSource(path=str(given.model.resolve()), identity="model"), given.trainers):
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
