"""README, CONTRIBUTING and docs/ say what is so: specs are valid, commands run, links lead somewhere, the site builds."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine import cli, registry
from caiflow.engine.constitution.load import load_constitution
from caiflow.engine.llm.base import Completion
from caiflow.engine.operator import RowLLM, RowOperator, StepContext
from caiflow.engine.spec.load import load_spec
from support.pages import ROOT, Block, blocks, commands, pages, run_page, save_files

BLOCKS = [block for page in pages() for block in blocks(page)]
CONSOLE = [block for block in BLOCKS if block.language == "console"]
RUN = [page for page in pages() if any(b.language == "console" and not b.noted("not run") for b in blocks(page))]
LONG = {page for page in RUN if page.read_text(encoding="utf-8").startswith("<!-- soak -->")}
RARE = {"judge-by-api.md", "look-back.md"}
"""Those among them that take a minute, and whose commands have tests of their own."""


def _name(of: Any) -> str:
    return f"{of.page.relative_to(ROOT)}:{of.line}" if isinstance(of, Block) else str(of.relative_to(ROOT))


class Echo(RowLLM):
    """Answers with the last turn it was sent."""

    async def chat(self, messages: Any, *_: Any, **__: Any) -> Completion:
        return Completion(messages[-1]["content"])

    async def complete(self, text: str, *_: Any, **__: Any) -> Completion:
        return Completion(text)

    async def choose(self, *_: Any, **__: Any) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/how-to/own-operator.md"])
def test_the_ten_line_operator_works_as_written(page: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "contributing"}
    exec(code, names)
    operator = names["Title"](names["TitleParams"](input="red", model="base", words=3), StepContext())
    assert isinstance(operator, RowOperator)
    assert operator.needs() == {"red": list(operator.reads())}
    row = {"uid": "a", "prompt": [{"role": "user", "content": "Why?"}]}
    assert asyncio.run(operator.row(row, Echo())) == {"title": "Give this a title of at most 3 words: Why?"}
    assert set(operator.writes()) == {"title"}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=_name)
def test_a_yaml_block_is_valid(block: Block, tmp_path: Path) -> None:
    save_files(block.page, tmp_path)
    path = tmp_path / (block.noted("file") or "block.yaml")
    text = block.text
    if recipe := block.noted("over"):
        text = f"caiflow: 1\nextends: {recipe}\n{text.removeprefix('caiflow: 1')}"
    path.write_text(text, encoding="utf-8")
    if re.search("^caiflow:", text, re.MULTILINE):
        spec = load_spec(path)
        for profile in spec.profiles:
            load_spec(path, profile=profile)
    else:
        assert load_constitution(str(path)).principles


def test_the_variant_in_the_page_on_specs_has_its_arms_and_its_profile(tmp_path: Path) -> None:
    (block,) = (b for b in blocks(ROOT / "docs/how-to/specs.md") if "extends: quickstart" in b.text)
    (tmp_path / "variant.yaml").write_text(block.text, encoding="utf-8")
    spec = load_spec(tmp_path / "variant.yaml")
    assert {"sl_cai@low", "sl_cai@high", "scores"} <= set(spec.steps)
    assert load_spec(tmp_path / "variant.yaml", profile="gpu").models["base"].source.startswith("mistralai/")


@pytest.mark.parametrize("block", CONSOLE, ids=_name)
def test_a_call_of_caiflow_names_what_there_is(block: Block) -> None:
    assert list(block.steps()), "no line begins with `$ `"
    for words in commands(block):
        if words and words[0] in cli.COMMANDS:
            cli.command_parser(words[0]).parse(words[1:])
        else:
            assert words in ([], ["--help"], ["--version"]), f"{words} is no command"


def test_the_calls_that_readme_lists_name_what_there_is() -> None:
    listed = re.findall(r"^caiflow (.+?)(?: {2,}.*| &&.*)?$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    calls = [call.split() for line in listed for call in line.replace("caiflow ", "").split(" · ")]
    assert len(calls) > 12
    for words in calls:
        cli.command_parser(words[0]).parse(words[1:])


@pytest.mark.parametrize("page", [page for page in RUN if page not in LONG], ids=_name)
def test_a_page_runs_as_written(page: Path, tmp_path: Path) -> None:
    assert not run_page(page, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.campaign] if page.name in RARE else []) for page in sorted(LONG)],
    ids=_name,
)
def test_a_page_with_trainings_runs_as_written(page: Path, tmp_path: Path) -> None:
    assert not run_page(page, tmp_path)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=_name)
def test_a_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]


def test_every_written_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "docs/zensical.toml").read_text(encoding="utf-8")
    assert not [page for page in pages()[1:] if f'"{page.relative_to(ROOT / "docs")}"' not in navigation]


def test_the_reference_has_every_field_of_every_operator(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "docs/make_pages.py", tmp_path], check=True)
    text = (tmp_path / "docs-pages/reference/operators.md").read_text(encoding="utf-8")
    sections = dict(zip(registry.BUILT_IN, re.split(r"^## ", text, flags=re.MULTILINE)[1:], strict=True))
    for name, section in sections.items():
        for field, info in registry.operator(name).params_type.model_fields.items():
            row = re.search(rf"^\| (\*\*)?`{info.alias or field}`.*\| (.*) \|$", section, re.MULTILINE)
            assert row, f"{name}.{field} is missing"
            assert row[2], f"{name}.{field} has no meaning"
            assert bool(row[1]) == info.is_required()
    listed = (tmp_path / "docs-pages/reference/commands.md").read_text(encoding="utf-8")
    assert re.findall(r"^### caiflow (\w+)$", listed, re.MULTILINE) == list(cli.COMMANDS)


@pytest.mark.skipif(not importlib.util.find_spec("zensical"), reason="the extra `docs` isn't installed")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "docs/make_pages.py", tmp_path], check=True)
    config = tmp_path / "zensical.toml"
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(config)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "docs/reference/operators.html").exists()
