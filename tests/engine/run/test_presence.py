"""What a machine tells of a model's files, and what is said of one that hasn't those that are here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from caiflow.engine.llm.base import ModelSource
from caiflow.engine.run.presence import Place, lacking, places, told_here
from support.source_tree import ROOT

TINY = ROOT / "examples" / "tiny" / "model"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(TINY, tmp_path / "copy")


def said_of(there: Path, here: Path = TINY) -> str:
    return lacking(Place(str(here)), told_here(Place(str(there))), told_here(Place(str(here))))


def test_a_copy_lacks_nothing(copy: Path) -> None:
    (copy / "README.md").write_text("More than the other has.")
    assert said_of(copy) == said_of(TINY, copy) == ""


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert said_of(tmp_path / "nothing") == f"lacks {TINY}"


def test_files_that_are_missing_are_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert said_of(copy) == f"lacks tokenizer.json in {TINY}"
    (copy / "config.json").unlink()
    assert said_of(copy) == f"lacks config.json and 1 more files in {TINY}"


def test_weights_of_the_same_size_are_told_apart(copy: Path) -> None:
    (weights,) = copy.glob("*.safetensors")
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2 + 10)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert said_of(copy) == f"has another {weights.name} in {TINY}"


def test_weights_that_are_there_twice_count_once(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"the same weights in another format")
    (copy / "consolidated.safetensors").write_bytes(b"and in another")
    assert said_of(TINY, copy) == ""


def test_what_is_in_the_store_is_left_to_the_store(tmp_path: Path) -> None:
    trained, file = tmp_path / "artifacts" / "trained", tmp_path / "model.gguf"
    of_adapter = ModelSource(str(TINY), "", adapter=str(trained), tokenizer=str(trained))
    assert places(of_adapter, tmp_path) == [Place(str(TINY))]
    assert places(ModelSource(str(trained), "", gguf=str(file)), tmp_path / "artifacts") == [Place(str(file))]
    trained.mkdir(parents=True)
    assert places(ModelSource(str(trained), "", gguf=str(file)), tmp_path / "artifacts") == []
    assert places(ModelSource("served", "", engine="openai"), tmp_path) == []


def test_files_that_can_not_be_read_are_told_of(copy: Path) -> None:
    (copy / "config.json").unlink()
    (copy / "config.json").symlink_to("/proc/self/mem")  # a file that takes no reading from its beginning
    assert said_of(copy) == f"can't read {TINY}: Input/output error"


def test_a_file_is_told_like_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"weights")
    here = Place(str(tmp_path / "model.gguf"))
    assert list(told_here(here)) == ["model.gguf"]
    assert lacking(here, {}, told_here(here)) == f"lacks {here.path}"


def test_a_repository_that_can_not_be_had_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = Place("org/name", "a" * 40)
    why = "its cache of the hub has no copy, and offline by the environment"
    assert lacking(place, told_here(place), {}) == f"can't have org/name: {why}"
    (tmp_path / "models--org--name" / "snapshots" / ("a" * 40)).mkdir(parents=True)
    assert lacking(place, told_here(place), {}) == ""
