"""What a spec may do, as `caiflow inspect` tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine import registry
from caiflow.engine.errors import SpecError
from caiflow.engine.plan.inspection import Inspection, inspection
from caiflow.engine.spec.load import draft_spec
from tests.support.small_operators import Sift

SPEC = """\
caiflow: 1
extends: base.yaml
constitution: [harmless, ../rules.yaml]
models:
  base: {source: tiny}
  large: {source: org/large, tokenizer: tok, other_engine_args: {worker_cls: theirs.Worker}}
  judge: {source: judge-1, base_url: "http://10.0.0.5:8000/v1"}
  api: {source: judge-2, base_url: "https://api.example.com/v1", api_key_env: JUDGE_KEY}
  near: {source: judge-3, base_url: "http://localhost:8000/v1", api_key_env: NEAR_KEY}
steps:
  data: {op: load, source: org/data}
  own: {op: load, source: "sub/*.jsonl"}
  lost: {op: load, source: none.jsonl}
  response: {op: generate, input: bundled, model: base}
  critique: {op: critique, input: response, model: judge}
  verdict: {op: critique, input: response, model: api}
profiles: {full: {seed: 3}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "theirs" / "sub").mkdir(parents=True)
    (tmp_path / "theirs" / "tok").mkdir()
    (tmp_path / "theirs" / "sub" / "a.jsonl").write_text('{"prompt": "a"}')
    (tmp_path / "theirs" / "spec.yaml").write_text(SPEC)
    (tmp_path / "theirs" / "base.yaml").write_text("steps: {bundled: {op: load, source: 'tiny:red_team_test.jsonl'}}\n")
    (tmp_path / "working").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path / "working")
    return tmp_path


def inspected(path: Path, **options: object) -> Inspection:
    return inspection(path, draft_spec(path, **options))  # type: ignore[arg-type]


def test_each_file_is_told_with_where_it_is(place: Path) -> None:
    found = inspected(place / "theirs" / "spec.yaml")
    assert {read.place: (read.path.removeprefix(str(place)), read.why) for read in found.reads} == {
        "models.large.source": ("", "fetched from the hub, unless it is in its cache"),
        "models.large.tokenizer": ("/theirs/tok", "in the spec's folder"),
        "steps.bundled.source": ("", "comes with caiflow, by name"),
        "steps.data.source": ("", "fetched from the hub, unless it is in its cache"),
        "steps.own.source": ("/theirs/sub/*.jsonl", "in the spec's folder"),
        "steps.lost.source": ("/theirs/none.jsonl", "not there"),
        "constitution[0]": ("", "comes with caiflow, by name"),
        "constitution[1]": ("/rules.yaml", "not allowed"),
    }
    assert {Path(path).name for path in found.specs} == {"spec.yaml", "base.yaml"}
    assert found.unseen == ("full",)


def test_each_server_is_told_with_what_it_is_sent(place: Path) -> None:
    found = inspected(place / "theirs" / "spec.yaml")
    assert [(ask.host, ask.steps, ask.keys, ask.flags) for ask in found.asks] == [
        ("10.0.0.5:8000", ("critique",), (), ("--allow-host 10.0.0.5:8000",)),
        ("api.example.com", ("verdict",), ("JUDGE_KEY",), ("--allow-env JUDGE_KEY=api.example.com",)),
        ("localhost:8000", (), ("NEAR_KEY",), ()),
    ]


def test_what_needs_consent_comes_with_the_flags_that_give_it(place: Path) -> None:
    path = place / "theirs" / "spec.yaml"
    assert inspected(path).flags == (
        f"--allow-path {place}",
        "--allow-host 10.0.0.5:8000",
        "--allow-env JUDGE_KEY=api.example.com",
        "--trust-remote-code",
    )
    (place / "config" / "caiflow").mkdir(parents=True)
    (place / "config" / "caiflow" / "allow.yaml").write_text(
        "hosts: ['10.0.0.5:8000']\napi_keys: {JUDGE_KEY: api.example.com}\n"
    )
    assert inspected(path, allowed=[place]).flags == ("--trust-remote-code",)
    typed = inspected(path, sets=[f"constitution={place}/rules.yaml"])
    assert "--trust-remote-code" in typed.flags
    assert not any(flag.startswith("--allow-path") for flag in typed.flags)


def test_code_of_other_packages_is_told(place: Path) -> None:
    path = place / "theirs" / "spec.yaml"
    path.write_text(SPEC + "matrix: {seeded: {a: {data.limit: 3}}}\n")
    with registry.extra(Sift):
        path.write_text(SPEC.replace("profiles:", f"  loud: {{op: {Sift.name}, input: own}}\nprofiles:"))
        codes = inspected(path).runs
    assert [code.place for code in codes] == ["models.large.other_engine_args", "steps.loud.op"]
    assert Sift.__module__ in codes[1].what


def test_a_spec_that_is_wrong_is_told_to_be_wrong(place: Path) -> None:
    path = place / "theirs" / "spec.yaml"
    path.write_text(SPEC.replace("op: critique", "op: critiqe"))
    with pytest.raises(SpecError, match="did you mean `critique`"):
        inspected(path)
