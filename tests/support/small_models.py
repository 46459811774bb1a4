"""Tiny random models, rows on disk and jobs, for tests that really train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.operator import Job
from caiflow.engine.rows.columns import Row
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.training.scratch import Scratch, random_model, train_tokenizer

SHAPE = Scratch(hidden_size=64, num_hidden_layers=2, max_position_embeddings=512, tokenizer={"vocab_size": 400})
EVEN = SHAPE.model_copy(update={"intermediate_size": 192})
"""Widths that 32 divides throughout, which kernels for 4 bits on CPUs want in bfloat16."""
VERBS = ("bake", "paint", "fix", "break", "steal", "plant")
OBJECTS = ("cake", "wall", "car", "lock", "bike", "tree")
TASKS = [(verb, thing) for verb in VERBS for thing in OBJECTS]


def lessons() -> list[Row]:
    """Return 36 conversations of one turn each."""
    return [
        {
            "uid": str(place),
            "messages": [
                {"role": "user", "content": f"How do I {verb} a {thing}?"},
                {"role": "assistant", "content": f"To {verb} a {thing}, find the {thing} and {verb} it. (A)"},
            ],
        }
        for place, (verb, thing) in enumerate(TASKS)
    ]


def preferences(labels: Sequence[float] = (1.0,)) -> list[Row]:
    """Return 36 preferences; their labels go round in turn."""
    return [
        {
            "uid": str(place),
            "prompt": [{"role": "user", "content": f"How do I {verb} a {thing}?"}],
            "chosen": f"No, I will not {verb}.",
            "rejected": f"To {verb} a {thing}, find the {thing}.",
            "p_chosen": labels[place % len(labels)],
        }
        for place, (verb, thing) in enumerate(TASKS)
    ]


def held_out(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the same answers to prompts that none of these has."""
    column = "prompt" if "prompt" in rows[0] else "messages"
    first = [{**row[column][0], "content": f"Tell me: {row[column][0]['content']}"} for row in rows]
    return [{**row, column: [turn, *row[column][1:]]} for row, turn in zip(rows, first, strict=True)]


def small_model(folder: Path, seed: int = 0, shape: Scratch = SHAPE) -> ModelSource:
    """Save a random Llama, of 0.15M parameters unless `shape` says otherwise, with a tokenizer of its own."""
    texts = [turn["content"] for row in lessons() for turn in row["messages"]] * 2
    tokenizer = train_tokenizer(texts, shape)
    random_model(shape, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSource(path=str(folder), identity=f"small-{seed}")


def saved(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Rows:
    """Write rows as a step would."""
    with RowsWriter(folder) as writer:
        writer.write_rows([dict(row) for row in rows])
    return Rows(folder)


def job(folder: Path, inputs: Mapping[str, Sequence[Mapping[str, Any]]], seed: int = 3, **models: ModelSource) -> Job:
    """Return a job whose inputs, output and checkpoints are under `folder`; a folder used before goes on where it stopped."""
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    tables = {name: saved(folder / "in" / name, rows) for name, rows in inputs.items()}
    return Job(out_dir=folder / "out", work_dir=work, inputs=tables, models=models, seed=seed)
