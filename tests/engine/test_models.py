from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.language import ModelEntry
from caiflow.engine.models import resolve_model

URL = "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    "entry",
    [
        ModelEntry(source="served", base_url=URL),
        ModelEntry(source="served", base_url=URL, engine="openai"),
        ModelEntry(source=URL),
    ],
)
def test_an_address_means_a_served_model_whatever_the_engine_says(entry: ModelEntry, tmp_path: Path) -> None:
    source = resolve_model("judge", entry, tmp_path)
    assert (source.engine, source.path) == ("openai", entry.source)


def test_a_served_models_tokenizer_is_part_of_what_decides_its_answers(tmp_path: Path) -> None:
    plain = resolve_model("judge", ModelEntry(source="served", base_url=URL), tmp_path)
    rendered = resolve_model("judge", ModelEntry(source="served", base_url=URL, tokenizer="tiny"), tmp_path)
    assert plain.tokenizer is None
    assert rendered.tokenizer is not None
    assert plain.identity != rendered.identity
