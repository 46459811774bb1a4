"""Where real dialogues, labels and scores lie: `$CAIFLOW_TEST_DATA`, or beside the repository. Tests skip what isn't there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL_DATA = Path(os.environ.get("CAIFLOW_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")


def needs(*files: Path) -> pytest.MarkDecorator:
    """Mark tests as skipped where one of these files is missing, with its path as the reason."""
    missing = [str(file) for file in files if not file.is_file()]
    return pytest.mark.skipif(bool(missing), reason=f"no real data at {', '.join(missing)}; set CAIFLOW_TEST_DATA")
