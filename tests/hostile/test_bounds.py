"""What a stranger's spec or data asks of time and memory is bounded, and refused in words with its place."""

from __future__ import annotations

import gzip
import json
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caiflow.operators.evaluation.checks import PatternCheck, compiled
from caiflow.operators.formats.templates import rendered
from support.commands import command_here

SPEC: dict[str, Any] = {"caiflow": 1, "steps": {"d": {"op": "load", "source": "r.jsonl"}}}
MODEL = {"m": {"source": "tiny"}}
GIVEN = {"x": "hello", "xs": ["a", "b"], "d": {"a": 1}}


def doubled(how: str, times: int = 60) -> str:
    return how * times


TEMPLATES = {
    "product": "{{ 'a' * 10**9 }}",
    "list": "{{ xs * 999999999 }}",
    "power": "{{ 9**9**9 }}",
    "number": "{{ 2**99 * 2**99999 }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x",
    "range": "{% for a in range(10**9) %}{% endfor %}x",
    "width": "{{ '%999999999d' % 1 }}",
    "star": "{{ '%*d' % (999999999, 1) }}",
    "filled": "{{ '{:>999999999}'.format(1) }}",
    "field": "{{ '{:>{w}}'.format(1, w=999999999) }}",
    "format": "{{ '%999999999d'|format(1) }}",
    "center": "{{ 'a'|center(999999999) }}",
    "ljust": "{{ 'a'.ljust(999999999) }}",
    "tabs": "{{ 'a\\tb'.expandtabs(999999999) }}",
    "batch": "{{ [1]|batch(999999999, 'x')|list }}",
    "indent": "{{ d|tojson(indent=999999999) }}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "concat": "{% set x = 'aaaaaaaaaa' %}" + doubled("{% set x = x ~ x %}") + "{{ x }}",
    "plus": "{% set x = 'aaaaaaaaaa' %}" + doubled("{% set x = x + x %}") + "{{ x }}",
    "lists": "{% set x = [1] %}" + doubled("{% set x = [x, x] %}") + "{{ x }}",
    "json": "{% set x = [1] %}" + doubled("{% set x = [x, x] %}") + "{{ x|tojson }}",
    "compare": "{% set x = [1] %}{% set y = [1] %}" + doubled("{% set x = [x, x] %}{% set y = [y, y] %}") + "{{ x == y }}",
    "replace": "{% set x = 'aaaaaaaaaa' %}" + doubled("{% set x = x|replace('a', 'aaaaaaaaaa') %}", 12) + "{{ x }}",
    "method": "{% set x = 'aaaaaaaaaa' %}" + doubled("{% set x = x.replace('a', 'aaaaaaaaaa') %}", 12) + "{{ x }}",
    "joined": "{% set x = 'aaaaaaaaaa' %}" + doubled("{% set x = [x, x]|join %}") + "{{ x }}",
    "namespace": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "output": "{% for i in range(99999) %}" + "a" * 1000 + "{% endfor %}",
    "constant": "{% for i in range(99999) %}{{ '" + "a" * 1000 + "' }}{% endfor %}",
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ x.__init__.__globals__ }}",
}


@pytest.mark.parametrize("text", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_that_asks_too_much_is_refused(text: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="the template"):
        rendered(text, GIVEN)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < 300


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("{% for a in xs %}{{ loop.index }}. {{ a }}{% if not loop.last %}\n{% endif %}{% endfor %}", "1. a\n2. b"),
        ("{{ x ~ '!' }} {{ '-' * 3 }} {{ 2 * 3 }} {{ 7 % 2 }} {{ '%s' % x }}", "hello! --- 6 1 hello"),
        ("{{ x.upper() }} {{ x|length }} {{ d.a + 1 }} {{ d|tojson }}", 'HELLO 5 2 {"a": 1}'),
        ("{{ 'In 2024: {}'.format(x) }} {{ '%02d'|format(3) }}", "In 2024: hello 03"),
        ("{% set n = namespace(n=0) %}{% for a in xs %}{% set n.n = n.n + 1 %}{% endfor %}{{ n.n }}{{ 'b' in xs }}", "2True"),
        ("{{ xs|join(', ') }}{{ x|replace('l', 'L')|trim }}{{ x == 'hello' }}", "a, bheLLoTrue"),
    ],
)  # fmt: skip
def test_a_template_that_asks_little_says_what_it_said(text: str, made: str) -> None:
    assert rendered(text, GIVEN) == made


def pattern(text: str) -> Callable[[str], bool]:
    test = compiled({"c": PatternCheck(pattern=text)})["c"]
    return lambda answer: test({"uid": "1", "response": answer})


@pytest.mark.parametrize(
    "text", ["(a+)+$", "(a|aa)+$", "(a|a?)+$", "(.*a){20}$", r"(\w+\s?)*$!", "^(([a-z])+.)+[A-Z]([a-z])+$"]
)
def test_a_pattern_is_searched_in_a_time_that_the_text_bounds(text: str) -> None:
    assert pattern(text)("a" * 50_000 + "!") in (True, False)


@pytest.mark.parametrize(
    "text", ["(?<=b)c", "(?=b)c", "(?!b)c", r"(b)\1", "(a", "[", "*", "(?:a{1000}){1000}", "(?:(?:a{99}){99}){99}"]
)
def test_a_pattern_that_only_going_back_finds_or_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="isn't a regular expression that can be searched"):
        PatternCheck(pattern=text)


@pytest.mark.parametrize(("text", "answer"), [("i will not", "No, I WILL NOT."), ("a.b", "a\nb"), (r"\bdon't\b", "I don’t")])
def test_patterns_find_what_they_found(text: str, answer: str) -> None:
    assert pattern(text)(answer)
    assert not pattern(text)("else")


def refused(place: Path, spec: dict[str, Any] | str) -> str:
    """Return what `validate` says of a spec, each problem of which has its place; it neither fails otherwise nor hangs."""
    (place / "s.yaml").write_text(spec if isinstance(spec, str) else json.dumps(spec))
    (place / "r.jsonl").write_text('{"prompt": "Hi", "response": "Hi"}\n')
    done = command_here(place, "validate", "s.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert all(line.split(":")[1].isdecimal() for line in done.stdout.splitlines()), done.stdout
    return done.stdout


def loads(source: str, **fields: Any) -> dict[str, Any]:
    return {**SPEC, "steps": {"d": {"op": "load", "source": source, **fields}}}


def _bomb(file: Any) -> None:
    file.write(b'{"a":"')
    for _ in range(200):
        file.write(b"a" * (1 << 20))


def test_packed_files_that_unpack_to_far_more_are_refused(tmp_path: Path) -> None:
    for name in ("b.jsonl.gz", "b.json.gz"):
        with gzip.open(tmp_path / name, "wb", 9) as file:
            _bomb(file)
    with zipfile.ZipFile(tmp_path / "b.json.zip", "w", zipfile.ZIP_DEFLATED) as packed, packed.open("b.json", "w") as file:
        _bomb(file)
    assert "a line of more than 32 MiB" in refused(tmp_path, loads("b.jsonl.gz"))
    assert "64 MiB" in refused(tmp_path, loads("b.json.gz"))
    assert "64 MiB" in refused(tmp_path, loads("b.json.zip"))


def test_a_file_of_small_lines_that_unpacks_without_end_is_refused_while_it_is_read(tmp_path: Path) -> None:
    from caiflow.operators.formats.files import read_lines

    with gzip.open(tmp_path / "b.txt.gz", "wb", 9) as file:
        for _ in range(100):
            file.write((b" " * 65_535 + b"\n") * 16)
    with pytest.raises(ValueError, match="unpacks to more than 400 times its size"):
        list(read_lines(tmp_path / "b.txt.gz"))


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_refused_wherever_it_is_named(kind: str, tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.yaml", "a.jinja"):
        os.mkfifo(tmp_path / name) if kind == "pipe" else (tmp_path / name).mkdir()
    assert refused(tmp_path, loads("a.jsonl"))
    assert "no constitution" in refused(tmp_path, {**SPEC, "constitution": "a.yaml"} | critiqued())
    assert "a template file" in refused(tmp_path, {**SPEC, "models": {"m": {"source": "tiny", "chat_template": "a.jinja"}}})


TOO_LONG = {"name": "a" * 300, "wide": "\u00e9" * 200, "path": "a/" * 2100 + "x", "home": "~" + "a" * 300, "pattern": "[" * 300}


@pytest.mark.parametrize(
    "place", ["source", "model", "tokenizer", "adapter", "template", "constitution", "extends", "revision"]
)
@pytest.mark.parametrize("kind", TOO_LONG)
def test_a_name_that_no_file_can_have_is_refused_wherever_it_is(place: str, kind: str, tmp_path: Path) -> None:
    name = TOO_LONG[kind]
    asked = {"a": {"op": "generate", "input": "d", "model": "m"}}
    field = {"model": "source", "template": "chat_template", "revision": "revision"}.get(place, place)
    spec = {**SPEC, "models": {"m": {"source": "tiny", field: name}}, "steps": {**SPEC["steps"], **asked}}
    spec = {"source": loads(name), "constitution": {**critiqued(), "caiflow": 1, "constitution": name}}.get(place, spec)
    assert refused(tmp_path, {"extends": name} if place == "extends" else spec)


def critiqued() -> dict[str, Any]:
    step = {"op": "critique", "input": "d", "model": "m"}
    return {"models": MODEL, "steps": {**SPEC["steps"], "c": step}}


def test_devices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    assert refused(tmp_path, loads("zero.jsonl"))
    assert refused(tmp_path, loads("/dev/zero"))


DEEP = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.jsonl", f'{{"prompt":{DEEP}}}\n'), ("d.json", DEEP), ("o.json", f'{{"a":{DEEP}}}'),
        ("n.jsonl", '{"n":' + "9" * 5000 + "}\n"),
    ],
    ids=["line", "array", "object", "number"],
)  # fmt: skip
def test_data_that_is_nested_without_end_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert refused(tmp_path, loads(name))


@pytest.mark.parametrize("name", ["d.json", "d.yaml"])
def test_a_constitution_that_is_nested_without_end_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(DEEP)
    assert "nested" in refused(tmp_path, {**critiqued(), "caiflow": 1, "constitution": name})


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(8)
)
AXES = {f"d.{field}": list(range(40)) for field in ("limit", "skip", "seed", "a", "b", "c")}


def mixed(**inputs: Any) -> dict[str, Any]:
    return {**SPEC, "steps": {**SPEC["steps"], "m": {"op": "mix", "inputs": inputs}}}


@pytest.mark.parametrize(
    "spec",
    [
        BOMB, "[" * 100_000, "{a: " * 100_000, {**SPEC, "matrix": AXES}, {**SPEC, "seed": 10**390},
        "caiflow: 1\nseed: 0x" + "f" * 100_000 + "\nsteps: {d: {op: load, source: r.jsonl}}\n",
        {**SPEC, "models": {"m": {"source": "tiny", "replicas": 1_000_000}}},
        {**SPEC, "steps": {"d": {**SPEC["steps"]["d"], "resources": {"workers": 10**6}}}},
        mixed(d=1e308), mixed(d=1e-308), mixed(d={"ratio": 1e308}),
        {**SPEC, "models": {"m": {"source": "tiny", "chat_template": "nofile.jinja"}}},
        loads("a\0b.jsonl"), loads("a" * 5000 + ".jsonl"), loads("*" * 300), loads("r.jsonl", prompt=TEMPLATES["loops"]),
    ],
    ids=[
        "aliases", "lists", "mappings", "matrix", "seed", "hexadecimal", "replicas", "workers", "ratio", "least", "share",
        "template", "nul", "long", "stars", "prompt",
    ],
)  # fmt: skip
def test_what_is_too_much_is_refused_at_its_place(spec: dict[str, Any] | str, tmp_path: Path) -> None:
    assert refused(tmp_path, spec)
