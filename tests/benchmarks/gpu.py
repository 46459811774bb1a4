"""The streaming comparison on a GPU, with random weights of real sizes: `python -m benchmarks.gpu --size 7b` within tests/.

Same contenders, work and table as streaming.py, but one contender after the other, since a GPU's memory holds one of them. The
weights are written to a temporary folder first (2 to 15 GB).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks import streaming


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or say why that can't be done here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("1b", "7b"), default="1b")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=streaming.REPEATS)
    parser.add_argument("--rows", type=int, default=streaming.ROWS)
    given = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        sys.exit("no CUDA device here; `python -m benchmarks.streaming` measures the same on a CPU")
    print(json.dumps(streaming.measure(given.repeats, given.rows, given.size, given.dtype, together=False), indent=1))


if __name__ == "__main__":
    main()
