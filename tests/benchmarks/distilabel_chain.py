"""The chain as a distilabel pipeline with its transformers LLM, run by a Python that has distilabel.

`python distilabel_chain.py MODEL ROWS`. Imports nothing of caiflow, which isn't installed there. The
library reads the annotations of steps as they run, so they aren't deferred here.
"""

import sys
from typing import Any

from distilabel.models import TransformersLLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts, StepInput, step
from distilabel.steps.tasks import ChatGeneration

from benchmarks.chain import first_turn, make_work, next_turn

BATCH = 64


@step(inputs=["messages", "generation"], outputs=["messages"])
def ask_for_critique(inputs: StepInput) -> Any:
    """Add the answer and the request for its critique."""
    yield [{**row, "messages": next_turn(row["messages"], row["generation"] or "", 1)} for row in inputs]


@step(inputs=["messages", "generation"], outputs=["messages"])
def ask_for_revision(inputs: StepInput) -> Any:
    """Add the critique and the request for a revision."""
    yield [{**row, "messages": next_turn(row["messages"], row["generation"] or "", 2)} for row in inputs]


def main() -> None:
    """Run the pipeline; every task loads a model of its own, as the library does."""
    model, rows = sys.argv[1], int(sys.argv[2])

    def task(name: str) -> Any:
        llm = TransformersLLM(model=model, generation_kwargs={"max_new_tokens": 32, "do_sample": False})
        return ChatGeneration(name=name, llm=llm, input_batch_size=BATCH)

    with Pipeline(name="chain") as pipeline:
        data = [{"messages": first_turn(prompt)} for prompt in make_work(rows, "even").prompts]
        load = LoadDataFromDicts(data=data, batch_size=BATCH)
        (
            load
            >> task("response")
            >> ask_for_critique(input_batch_size=BATCH)
            >> task("critique")
            >> ask_for_revision(input_batch_size=BATCH)
            >> task("revision")
        )
    done = pipeline.run(use_cache=False)
    found = done["default"]["train"]
    assert len(found) == rows, f"{len(found)} rows came out of {rows}"
    assert all(found["generation"]), "some rows have no revision"


if __name__ == "__main__":
    main()
