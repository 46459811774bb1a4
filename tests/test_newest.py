"""Whether what our source uses of other libraries is there: in what is installed, and in the newest releases allowed.

The newest ones are downloaded, not installed (`make test-newest`), since a GPU's vLLM can't be installed everywhere, and their
sources are read. What is used is collected from our source, and listed with its places in build/newest/LIBRARY-VERSION.txt.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from caiflow.engine.spec.engine_args import EngineArgs
from support.library_sources import Library
from support.library_uses import Use, uses
from support.source_tree import ROOT

SOURCE = [ROOT / "engine", ROOT / "operators"]
KEPT = ROOT / "build" / "newest"
LIBRARIES = ("vllm", "transformers", "trl", "peft", "ray")
DRAWING = ("murmur3_hash32", "_murmur3_mix", "_murmur3_fmix32", "murmur3_uniform32", "gumbel_noised_argmax")
"""The functions of vLLM's gumbel.py that decide which token a seed draws under `draws: vllm`."""


def wrong(found: list[Use]) -> str:
    return "\n".join(f"{use.where}: {use.wrong}" for use in found if use.wrong)


def installed(name: str) -> Library:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{name} is not installed")
    return Library(Path(spec.submodule_search_locations[0]).parent, name)


def engine_arguments() -> set[str]:
    """Return the names that we give vLLM's EngineArgs: a spec's, and the keys of the tables that start.py makes."""
    tree = ast.parse((ROOT / "engine/llm/vllm/start.py").read_text(encoding="utf-8"))
    makers = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in ("_defaults", "_adapter_shape")]
    tables = [node for maker in makers for node in ast.walk(maker) if isinstance(node, ast.Dict)]
    keys = [key.value for table in tables for key in table.keys if isinstance(key, ast.Constant)]
    subscripts = [node for maker in makers for node in ast.walk(maker) if isinstance(node, ast.Subscript)]
    set_alone = [n.slice.value for n in subscripts if isinstance(n.ctx, ast.Store) and isinstance(n.slice, ast.Constant)]
    return {*keys, *set_alone, *EngineArgs.model_fields} - {"device"}  # the transformers engine's alone


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_is_used_of_the_installed_library_is_there(name: str) -> None:
    found = uses(SOURCE, installed(name))
    assert found
    assert not wrong(found)


def test_vllms_whole_way_of_a_request_is_followed() -> None:
    known = {use.what for use in uses(SOURCE, installed("vllm"))}
    assert known >= {
        "LLMEngine.add_request(*, *, *, lora_request, priority)", "LLMEngine.step()", "CompletionOutput.token_ids",
        "Logprob.rank",
        "LogitsProcessor.__init__ (overridden)", "LogitsProcessor.apply (overridden)", "UvaBackedTensor.np",
    }  # fmt: skip


def test_the_engine_arguments_that_we_set_are_vllms() -> None:
    given = engine_arguments()
    assert {"model", "max_lora_rank", "tensor_parallel_size", "max_model_len"} <= given
    assert given <= installed("vllm").fields("vllm.engine.arg_utils", "EngineArgs")


THEIRS = """
from dataclasses import dataclass
from abc import abstractmethod

@dataclass
class Settings:
    size: int
    name: str = ""

class Base:
    @abstractmethod
    def __init__(self, size, device): ...
    def apply(self, row, scores): ...

class Engine:
    def __init__(self, settings: Settings):
        self.settings = settings
    def step(self, wait: float = 0) -> list[Settings]: ...

def start(settings, *, quiet=False) -> Engine: ...
"""
OURS = """
from other.parts import Base, Engine, Settings, start

class Mine(Base):
    def __init__(self, size, device): ...
    def apply(self, row, scores): ...

def run(engine: Engine):
    made = start(Settings(3, name="x"), quiet=True)
    made.settings.name
    for one in engine.step(wait=1):
        one.size
"""


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("def start(", "def begin(", "has no other.parts.start"),
        ("quiet=False", "loud=False", "start takes no quiet"),
        ("size: int", "width: int", "Settings has no size"),
        ('name: str = ""', "", "Settings takes no name"),
        ("def step(self, wait: float = 0)", "def step(self)", "step takes no wait"),
        ("def step(", "def go(", "Engine has no step"),
        ("def apply(self, row, scores)", "def apply(self, scores)", "ours ['self', 'row', 'scores']"),
        ("def __init__(self, size, device)", "def __init__(self, size)", "ours ['self', 'size', 'device']"),
        ("quiet=False", "quiet=False, place", "start wants place"),
        ("self.settings = settings", "self.chosen = settings", "Engine has no settings"),
    ],
)
def test_whatever_a_library_changes_that_is_used_is_told_with_its_place(
    before: str, after: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "ours").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("")
    (tmp_path / "ours" / "code.py").write_text(OURS)
    for text, expected in ((THEIRS, ""), (THEIRS.replace(before, after), told)):
        (tmp_path / "other" / "parts.py").write_text(text)
        found = wrong(uses([tmp_path / "ours"], Library(tmp_path, "other")))
        assert expected in found
        assert bool(expected) == bool(re.search(r"code\.py:\d+: ", found))


@pytest.fixture(scope="session")
def newest() -> dict[str, Library]:
    """The newest releases that pyproject.toml allows, unpacked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["vllm"]]
    named = {re.split(r"[\[<>=~!]", one)[0]: one.replace("[default]", "") for one in asked}
    KEPT.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "-d", str(KEPT)]
    got = subprocess.run([*command, *(named[name] for name in LIBRARIES)], capture_output=True, text=True, check=False)
    assert got.returncode == 0, got.stderr[-2000:]
    return {name: _unpacked(name, got.stdout) for name in LIBRARIES}


def _unpacked(name: str, told: str) -> Library:
    """Unpack the wheel that pip named; what is there from another release stays apart."""
    wheel = next(KEPT / match for match in re.findall(r"([\w.-]+\.whl)", told) if match.startswith(f"{name}-"))
    folder = KEPT / "-".join(wheel.name.split("-")[:2])
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder, [one for one in packed.namelist() if one.endswith((".py", ".pyi"))])
    return Library(folder, name)


@pytest.mark.newest
@pytest.mark.parametrize("name", LIBRARIES)
def test_what_is_used_of_the_newest_release_is_there(name: str, newest: dict[str, Library]) -> None:
    found = uses(SOURCE, newest[name])
    table = "\n".join(f"{use.what}  {use.where}  {use.wrong}".rstrip() for use in sorted(found, key=lambda use: use.what))
    folder = newest[name].folder
    folder.with_name(f"{folder.name}.txt").write_text(table + "\n", encoding="utf-8")
    assert found
    assert not wrong(found)


@pytest.mark.newest
def test_the_engine_arguments_that_we_set_are_the_newest_vllms(newest: dict[str, Library]) -> None:
    assert engine_arguments() <= newest["vllm"].fields("vllm.engine.arg_utils", "EngineArgs")


@pytest.mark.newest
def test_the_newest_vllms_own_draws_are_those_of_the_one_installed(newest: dict[str, Library]) -> None:
    # otherwise `draws: vllm` has come to mean other tokens, and its identity must say so
    for name in DRAWING:
        kinds = [library.find("vllm.v1.worker.gpu.sample.gumbel", name) for library in (installed("vllm"), newest["vllm"])]
        assert all(kinds), name
        before, after = (ast.dump(kind.node) for kind in kinds if kind is not None and kind.node is not None)
        assert before == after, name
