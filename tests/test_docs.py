"""The operator in CONTRIBUTING and the variant in README work as written."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

from caiflow.engine.llm.base import Completion
from caiflow.engine.operator import RowLLM, RowOperator, StepContext
from caiflow.engine.spec.load import load_spec

ROOT = Path(__file__).parents[1]


class Echo(RowLLM):
    """Answers with the last turn it was sent."""

    async def chat(self, messages: Any, *_: Any, **__: Any) -> Completion:
        return Completion(messages[-1]["content"])

    async def complete(self, text: str, *_: Any, **__: Any) -> Completion:
        return Completion(text)

    async def choose(self, *_: Any, **__: Any) -> dict[str, float]:
        return {}


def test_the_ten_line_operator_works_as_written() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "contributing"}
    exec(code, names)
    operator = names["Title"](names["TitleParams"](input="red", model="base", words=3), StepContext())
    assert isinstance(operator, RowOperator)
    assert operator.needs() == {"red": list(operator.reads())}
    row = {"uid": "a", "prompt": [{"role": "user", "content": "Why?"}]}
    assert asyncio.run(operator.row(row, Echo())) == {"title": "Give this a title of at most 3 words: Why?"}
    assert set(operator.writes()) == {"title"}


def test_the_variant_in_the_readme_is_valid(tmp_path: Path) -> None:
    found = re.findall(r"^  ```yaml\n(.*?)^  ```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "variant.yaml").write_text(textwrap.dedent(found[0]), encoding="utf-8")
    spec = load_spec(tmp_path / "variant.yaml")
    assert {"sl_cai@low", "sl_cai@high", "scores"} <= set(spec.steps)
    assert load_spec(tmp_path / "variant.yaml", profile="gpu").models["base"].source.startswith("mistralai/")
