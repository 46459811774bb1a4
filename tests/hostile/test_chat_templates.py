"""A chat template that anybody wrote: where a model's prompts are made it is held to the same bounds as where it is checked."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import ModelSource, Request
from caiflow.engine.llm.render import Renderer
from caiflow.engine.llm.tokenizer_files import TokenizerFiles
from caiflow.engine.training.models import load_tokenizer
from hostile.test_bounds import TEMPLATES
from support.chat_templates import SYSTEM, TALK

# what the templates of the bounds' own tests go by, here made of what a chat template is given
NAMES = "{% set xs = messages %}{% set x = messages[0].content %}{% set d = messages[0] %}"
OTHERS = {
    "over turns": "{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}",
    "in a macro": "{% macro f(n) %}{% for i in range(99999) %}{{ f(n) }}{% endfor %}{% endmacro %}{{ f(1) }}",
    "marked": "{% generation %}{{ 'a' * 10**9 }}{% endgeneration %}",
    "of tokens": "{{ eos_token * 10**9 }}",
    "pretty": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x|tojson(indent=4) }}",
    "wide": "{{ messages|tojson(indent=999999999) }}",
}
HONEST = [
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}it:{% endif %}",
    "{%- for m in messages %}\n{%- if m.role == 'assistant' %}\n{% generation %}\n{{ m.content }}{% endgeneration %}\n"
    "{% else %}"
    "{{ m.content }}\n{% endif %}{% endfor %}",
    "{{ bos_token }}{% for m in messages %}{% if loop.index0 > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{% if tools is none and not documents %}{{ messages | tojson(indent=2) }}{% endif %}{{ messages[1:] | length }}é\n",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}",
    "    {% if true %}\n  x\n    {% endif %}\n{{ strftime_now('%Y') }}{{ messages | map(attribute='role') | join(',') }}",
]


@pytest.fixture(scope="module")
def tokenizer(model: ModelSource) -> Any:
    return load_tokenizer(model)


@pytest.mark.parametrize("text", [*TEMPLATES.values(), *OTHERS.values()], ids=[*TEMPLATES, *OTHERS])
def test_a_template_that_asks_too_much_is_refused_where_prompts_are_made(tokenizer: Any, text: str, tmp_path: Path) -> None:
    given = NAMES + text
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for render in (
        lambda: Renderer(tokenizer, given).text(Request(TALK[:1])),
        lambda: Renderer(tokenizer, given).conversation(TALK),
        lambda: TokenizerFiles(tmp_path, given).render(TALK, prompt=False),
    ):
        with pytest.raises(EngineError, match="the chat template refuses the conversation"):
            render()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < 300
    assert time.process_time() - began < 6.0  # three renderings


@pytest.mark.parametrize("template", HONEST)
@pytest.mark.parametrize("messages", [TALK, (SYSTEM, *TALK[:1])])
@pytest.mark.parametrize("prompt", [True, False])
def test_an_honest_template_says_what_transformers_says(tokenizer: Any, template: str, messages: Any, prompt: bool) -> None:
    theirs = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt, chat_template=template)
    assert Renderer(tokenizer, template)._apply(messages, "", prompt=prompt) == theirs


def test_long_conversations_are_within_the_bounds(tokenizer: Any) -> None:
    talk = TALK * 2000
    said = Renderer(tokenizer, HONEST[0])._apply(talk, "", prompt=True)
    assert said.count("How do I bake?") == 2000
    long = ({"role": "user", "content": "word " * 400_000},)
    assert len(Renderer(tokenizer, HONEST[0])._apply(long, "", prompt=True)) > 1_900_000
