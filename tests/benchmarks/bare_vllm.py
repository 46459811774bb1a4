"""What a hand-written script on vLLM is: load, three stages of `LLM.chat`, write the rows. `python bare_vllm.py MODEL ROWS`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from vllm import LLM

from benchmarks.chain import make_work
from benchmarks.contenders import vllm_arguments
from benchmarks.ways import staged


def main() -> None:
    """Run the chain and write its rows."""
    model, rows = sys.argv[1], int(sys.argv[2])
    work = make_work(rows, "even")
    answers = staged(LLM(**vllm_arguments(model)), work)
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "rows.jsonl", "w", encoding="utf-8") as out:
        for prompt, said in zip(work.prompts, answers, strict=True):
            out.write(json.dumps({"prompt": prompt, "answers": said}) + "\n")


if __name__ == "__main__":
    main()
