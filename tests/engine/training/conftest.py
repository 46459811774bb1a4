"""A tiny random model, made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.operator import ModelSource
from support.small_models import small_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A random Llama on disk."""
    return small_model(Path(tmp_path_factory.mktemp("model")))
