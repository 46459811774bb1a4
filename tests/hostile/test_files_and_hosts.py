"""A stranger's spec reads no file and asks no server that its user didn't allow, by whatever spelling.

What may not be read lies in `secret/`. Nothing there is opened, and nothing of it stands in a message, whatever a spec names.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import caiflow
from caiflow.engine.errors import PlanError, SpecError
from caiflow.engine.plan.consent import refuse_unallowed, servers, with_typed
from caiflow.engine.plan.inspection import inspection
from caiflow.engine.spec.load import check_spec, draft_spec, load_spec
from caiflow.engine.spec.permissions import KeySent, Permissions, permissions, remember

SECRET = "TOP-SECRET"
ROW = f'{{"prompt": "{SECRET}"}}\n'
_opened: list[str] | None = None


def _watch(event: str, args: tuple[object, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], str | Path):
        _opened.append(os.path.realpath(args[0]))


sys.addaudithook(_watch)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, secrets beside it, the stranger's folder, and a working folder that is none of them."""
    for name in ("home/.config", "secret/model", "secret/shards", "theirs/sub", "working"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("rows.jsonl", "shards/a.jsonl", "rows.jsonl.gz", "weights.gguf", "model/tokenizer.json"):
        (tmp_path / "secret" / name).write_text(ROW)
    (tmp_path / "secret" / "rules.yaml").write_text(f"- {SECRET}\n- [")
    (tmp_path / "secret" / "rules.txt").write_text(f"root:x:0:0:{SECRET}:/root:/bin/bash\n")
    (tmp_path / "secret" / "t.jinja").write_text(f"{SECRET} {{% broken")
    (tmp_path / "secret" / "base.yaml").write_text(f"caiflow: 1\nsteps: {{a: {{op: load, source: {SECRET}}}}}\n")
    (tmp_path / "secret" / "model" / "config.json").write_text(f'{{"model_type": "{SECRET}"}}')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CAIFLOW_HOME", str(tmp_path / "store"))
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path / "working")
    return tmp_path


@pytest.fixture
def opened(place: Path) -> Iterator[Callable[[], list[str]]]:
    """What has been opened or listed below `secret/` since the test began."""
    global _opened
    _opened = []
    yield lambda: [path for path in _opened or () if Path(path).is_relative_to(place / "secret")]
    _opened = None


def link(place: Path, name: str, target: str) -> None:
    (place / "theirs" / name).symlink_to(target.replace("SECRET", str(place / "secret")))


def spec(place: Path, text: str, where: str = "theirs/spec.yaml") -> Path:
    path = place / where
    path.write_text("caiflow: 1\n" + text.replace("SECRET", str(place / "secret")))
    return path


def load(source: str, more: str = "") -> str:
    return f"steps: {{a: {{op: load, source: {source!r}{more}}}}}\n"


def generate(model: str) -> str:
    steps = "{a: {op: load, source: 'tiny:red_team_test.jsonl'}, b: {op: generate, input: a, model: m}}"
    return f"models: {{m: {{{model}}}}}\nsteps: {steps}\n"


def critique(constitution: str, top: str = "") -> str:
    step = f", constitution: {constitution}" if constitution else ""
    return (
        f"{top}models: {{m: {{source: tiny}}}}\nsteps:\n  a: {{op: load, source: 'tiny:revisions.jsonl'}}\n"
        f"  b: {{op: critique, input: a, model: m{step}}}\n"
    )


CHOICES = (
    "models: {m: {source: tiny}}\nsteps: {e: {op: evaluate, models: [m], standard_checks: false, "
    "choices: {q: {source: SECRET/rows.jsonl}}}}\n"
)

FILES = {
    "absolute": load("SECRET/rows.jsonl"),
    "absolute with dots": load("SECRET/../secret/rows.jsonl"),
    "up": load("../secret/rows.jsonl"),
    "down and up": load("sub/../../secret/rows.jsonl"),
    "up and up": load("./../theirs/./../secret/rows.jsonl"),
    "through nothing": load("nothing/../../secret/rows.jsonl"),
    "through a file": load("spec.yaml/../../secret/rows.jsonl"),
    "packed": load("../secret/rows.jsonl.gz"),
    "not there": load("../secret/none.jsonl"),
    "the folder": load("../secret"),
    "pattern": load("../secret/*.jsonl"),
    "pattern of all": load("SECRET/*"),
    "pattern of folders": load("../secret/**"),
    "pattern in brackets": load("../secret/[r]ows.jsonl"),
    "by /proc": load("/proc/self/root" + "SECRET/rows.jsonl"),
    "by the working folder": load("/proc/self/cwd/../secret/rows.jsonl"),
    "limited": load("../secret/rows.jsonl", ", limit: 1"),
    "with an unknown key beside": load("../secret/rows.jsonl", ", lmit: 1"),
    "with a wrong value beside": load("../secret/rows.jsonl", ", limit: none"),
    "questions": CHOICES,
    "constitution": critique("SECRET/rules.yaml"),
    "constitution up": critique("../secret/rules.yaml"),
    "constitution of text": critique("../secret/rules.txt"),
    "constitution of the spec": critique("", "constitution: SECRET/rules.yaml\n"),
    "constitution that no step uses": "constitution: SECRET/rules.yaml\n" + load("tiny:red_team_test.jsonl"),
    "constitution in a list": critique("[harmless, SECRET/rules.yaml]"),
    "constitution without": critique("{source: SECRET/rules.yaml, without: [x]}"),
    "constitution in a list without": critique("[{source: SECRET/rules.yaml, only: [x]}]"),
    "constitution of a source's list": critique("{source: [harmless, SECRET/rules.yaml]}"),
    "constitution of a source's source": critique("{source: {source: SECRET/rules.yaml}}"),
    "constitution as an anchor": "constitution: &c SECRET/rules.yaml\n" + critique("*c"),
    "template": generate("source: tiny, chat_template: SECRET/t.jinja"),
    "template up": generate("source: tiny, chat_template: ../secret/t.jinja"),
    "template of any name": generate("source: tiny, chat_template: ../secret/rules.txt"),
    "template of a server": generate("source: x, base_url: 'http://localhost:1/v1', chat_template: SECRET/t.jinja"),
    "model": generate("source: SECRET/model"),
    "model up": generate("source: ../secret/model"),
    "model beside the working folder": generate("source: ../secret/model"),
    "model by a hub id's looks": generate("source: sub/../../secret/model"),
    "GGUF": generate("source: ../secret/weights.gguf"),
    "tokenizer": generate("source: tiny, tokenizer: SECRET/model"),
    "tokenizer of a server": generate("source: x, base_url: 'http://localhost:1/v1', tokenizer: SECRET/model"),
    "adapter": generate("source: tiny, adapter: SECRET/model"),
    "extends": "extends: ../secret/base.yaml\n",
    "extends absolute": "extends: SECRET/base.yaml\n",
    "extends what is no YAML": "extends: ../secret/rules.txt\n",
    "arm": load("tiny:red_team_test.jsonl") + "matrix: {a.source: ['tiny:red_team_test.jsonl', SECRET/rows.jsonl]}\n",
    "named arm": load("tiny:red_team_test.jsonl") + "matrix: {x: {own: {a.source: ../secret/rows.jsonl}, none: {}}}\n",
    "arm of a constitution": critique("harmless") + "matrix: {x: {own: {b.constitution: SECRET/rules.yaml}, none: {}}}\n",
    "arm of a model": generate("source: tiny") + "matrix: {x: {own: {models.m.source: SECRET/model}, none: {}}}\n",
    "merge key": "steps:\n  a: &a {op: load, source: SECRET/rows.jsonl}\n  b: {<<: *a, limit: 1}\n",
}  # fmt: skip


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_no_file_outside_is_read_or_told_of(place: Path, opened: Callable[[], list[str]], text: str) -> None:
    with pytest.raises(SpecError) as refused:
        load_spec(spec(place, text))
    assert any("say --allow-path" in problem.hint for problem in refused.value.problems), str(refused.value)
    assert all(problem.line > 0 and problem.col > 0 for problem in refused.value.problems)
    assert SECRET not in str(refused.value)
    assert "did you mean `rows" not in str(refused.value)
    assert opened() == []


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_inspect_opens_nothing_and_tells_what_needs_consent(place: Path, opened: Callable[[], list[str]], text: str) -> None:
    path = spec(place, text)
    try:
        flags = inspection(path, draft_spec(path)).flags
    except SpecError as refused:  # a spec that extends another one, or that has other mistakes
        flags = (str(refused),)
    assert len(flags) == 1
    assert "--allow-path" in flags[0] or "lmit" in flags[0] or "limit" in flags[0]
    assert SECRET not in flags[0]
    assert opened() == []


LINKS = {
    "a link to a file": ("x.jsonl", "SECRET/rows.jsonl", load("x.jsonl")),
    "a relative link": ("x.jsonl", "../secret/rows.jsonl", load("x.jsonl")),
    "a link to a folder": ("data", "SECRET", load("data/rows.jsonl")),
    "a link up": ("up", "..", load("up/secret/rows.jsonl")),
    "a link to everything": ("all", "/", load("all" + "SECRET/rows.jsonl")),
    "a link among a pattern's files": ("sub/x.jsonl", "SECRET/rows.jsonl", load("sub/*.jsonl")),
    "a pattern in a link": ("data", "SECRET", load("data/*.jsonl")),
    "a link that a bundled name hides": ("harmless", "SECRET/rules.yaml", critique("harmless")),
    "a constitution": ("mine.yaml", "SECRET/rules.yaml", critique("mine.yaml")),
    "a template": ("t.jinja", "SECRET/t.jinja", generate("source: tiny, chat_template: t.jinja")),
    "a model": ("m", "SECRET/model", generate("source: m")),
    "a model like a hub id": ("org", "SECRET", generate("source: org/model")),
    "a file of a model": ("sub/tokenizer.json", "SECRET/model/tokenizer.json", generate("source: sub")),
    "a file of an adapter": ("sub/adapter.bin", "SECRET/model/tokenizer.json", generate("source: tiny, adapter: sub")),
    "a spec extended": ("base.yaml", "SECRET/base.yaml", "extends: base.yaml\n"),
    "a recipe's name": ("quickstart", "SECRET/base.yaml", "extends: quickstart\n"),
    "by /proc": ("x.jsonl", "/proc/self/cwd/../secret/rows.jsonl", load("x.jsonl")),
}


@pytest.mark.parametrize(("name", "target", "text"), LINKS.values(), ids=LINKS)
def test_no_link_leads_out(place: Path, opened: Callable[[], list[str]], name: str, target: str, text: str) -> None:
    link(place, name, target)
    with pytest.raises(SpecError, match="say --allow-path") as refused:
        load_spec(spec(place, text))
    assert SECRET not in str(refused.value)
    assert opened() == []


def test_a_link_of_links_and_one_to_itself_lead_nowhere(place: Path, opened: Callable[[], list[str]]) -> None:
    link(place, "one", "two")
    link(place, "two", "SECRET/rows.jsonl")
    link(place, "ring.jsonl", "ring.jsonl")
    with pytest.raises(SpecError, match="say --allow-path"):
        load_spec(spec(place, load("one")))
    with pytest.raises(SpecError, match="no such file"):
        load_spec(spec(place, load("ring.jsonl")))
    assert opened() == []


NOWHERE = {
    "a file's address": load("file://SECRET/rows.jsonl"),
    "a bundled file elsewhere": load("tiny:SECRET/rows.jsonl"),
    "a bundled file above": load("tiny:../../../../../../../../../..SECRET/rows.jsonl"),
    "a bundled file beside": load("plain:../../tiny/../../../SECRET/rows.jsonl"),
    "a stranger's home": load("~nobody-of-that-name/rows.jsonl"),
    "a null": load("x").replace("'x'", '"../secret/rows.jsonl\\0"'),
    "a long name": load("x" * 5000 + ".jsonl"),
    "a pattern that is none": load("**x.jsonl"),
    "a folder of a data set": load("org/data", ", folder: SECRET"),
    "a folder above a data set": load("org/data", ", folder: ../../secret"),
    "a revision of a data set": load("org/data", ", revision: SECRET/rules.txt"),
    "a revision of a model": generate("source: org/model, revision: ../../../../../secret/rules.txt"),
    "a model's address": generate("source: 'file://SECRET/model'"),
}


@pytest.mark.parametrize("text", NOWHERE.values(), ids=NOWHERE)
def test_what_is_no_path_leads_to_no_file(
    place: Path, opened: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    problems = check_spec(spec(place, text))
    assert SECRET not in "".join(map(str, problems))
    assert all(problem.line > 0 for problem in problems)
    assert opened() == []


@pytest.mark.parametrize("name", [".env.jsonl", ".ssh/rows.jsonl", "sub/.git/rows.jsonl", "./sub/../.env.jsonl"])
def test_hidden_files_are_no_data_even_in_the_specs_own_folder(place: Path, name: str) -> None:
    path = place / "theirs" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(ROW)
    with pytest.raises(SpecError, match="say --allow-path"):
        load_spec(spec(place, load(name)))
    assert load_spec(spec(place, load(name)), allowed=[path]).steps


def test_a_home_folder_is_nobodys_project(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "home" / "letters").mkdir()
    (place / "home" / "letters" / "rows.jsonl").write_text(ROW)
    (place / "home" / "downloads").mkdir()
    for where, source in (("spec.yaml", "letters/rows.jsonl"), ("downloads/spec.yaml", "../letters/rows.jsonl")):
        for working in (place / "home", place, Path("/")):
            monkeypatch.chdir(working)
            with pytest.raises(SpecError, match="--allow-path") as refused:
                load_spec(spec(place, load(source), f"home/{where}"))
            assert f"--allow-path {place / 'home' / 'letters'} " in str(refused.value)
    (place / "home" / "rows.jsonl").write_text(ROW)
    with pytest.raises(SpecError, match=f"--allow-path {place / 'home' / 'rows.jsonl'} "):
        load_spec(spec(place, load("rows.jsonl"), "home/spec.yaml"))
    with pytest.raises(SpecError, match="--allow-path"):
        load_spec(spec(place, load("~/rows.jsonl")))


def test_the_hubs_cache_may_be_read_and_its_token_may_not(place: Path) -> None:
    cache = place / "home" / ".cache" / "huggingface"
    (cache / "hub" / "rows").mkdir(parents=True)
    (cache / "token").write_text(SECRET)
    (cache / "hub" / "rows" / "a.jsonl").write_text(ROW)
    assert load_spec(spec(place, load("~/.cache/huggingface/hub/rows/a.jsonl"))).steps
    with pytest.raises(SpecError, match=f"--allow-path {cache}"):
        load_spec(spec(place, load("~/.cache/huggingface/token")))


def test_an_adapter_is_laid_over_no_model_elsewhere(place: Path, opened: Callable[[], list[str]]) -> None:
    (place / "theirs" / "sub" / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{place}/secret/model"}}')
    with pytest.raises(SpecError, match="say --allow-path"):
        load_spec(spec(place, generate("source: sub")))
    assert opened() == []


@pytest.mark.parametrize(
    "entry", ["source: mine", "source: tiny, chat_template: mine/notes.txt", "source: tiny, tokenizer: mine"]
)
def test_nothing_is_read_of_a_working_folder_that_is_not_around_the_spec(place: Path, entry: str) -> None:
    (place / "working" / "mine").mkdir()
    (place / "working" / "mine" / "notes.txt").write_text(SECRET)
    with pytest.raises(SpecError, match=f"say --allow-path {place}/working/mine"):
        load_spec(spec(place, generate(entry)))


@pytest.mark.parametrize("name", ["--set", "spec (a dict)", "a.yaml"])
def test_no_file_passes_for_what_the_user_wrote_by_hand(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(place / "theirs")
    spec(place, load("../secret/rows.jsonl"), f"theirs/{name}")
    spec(place, f"extends: {name!r}\n")
    for ask in (lambda: load_spec("spec.yaml"), lambda: load_spec(name), lambda: caiflow.plan({"caiflow": 1, "extends": name})):
        with pytest.raises(SpecError, match=r"say --allow-path|extend each other in a circle"):
            ask()


def test_a_spec_that_is_extended_reaches_no_further(place: Path) -> None:
    (place / "theirs" / "sub" / "base.yaml").write_text("caiflow: 1\nextends: ../../secret/base.yaml\n")
    with pytest.raises(SpecError, match="say --allow-path"):
        load_spec(spec(place, "extends: sub/base.yaml\n"))


def test_a_profile_reaches_no_further(place: Path) -> None:
    text = load("tiny:red_team_test.jsonl") + "profiles: {big: {steps: {a: {source: ../secret/rows.jsonl}}}}\n"
    assert load_spec(spec(place, text)).steps
    with pytest.raises(SpecError, match="say --allow-path"):
        load_spec(spec(place, text), profile="big")


def test_a_folder_that_begins_alike_is_not_allowed(place: Path) -> None:
    (place / "secret-too").mkdir()
    (place / "secret-too" / "rows.jsonl").write_text(ROW)
    with pytest.raises(SpecError, match=f"--allow-path {place / 'secret-too'} "):
        load_spec(spec(place, load("../secret-too/rows.jsonl")), allowed=[place / "secret"])


def test_the_other_mistakes_are_told_along_with_it(place: Path) -> None:
    text = load("../secret/rows.jsonl") + "  \n"
    (path := spec(place, "steps:\n  a: {op: load, source: ../secret/rows.jsonl}\n  b: {op: generate, input: c, model: m}\n"))
    with pytest.raises(SpecError) as refused:
        load_spec(path)
    assert [problem.line for problem in refused.value.problems] == [3, 4, 4], text


# ------------------------------------------------------------------------------------------------- what may be read


def test_what_the_user_names_may_be_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = spec(place, load("../secret/rows.jsonl"))
    monkeypatch.setenv("OLDPWD", "/")
    assert load_spec(path, allowed=[Path("../secret")]).steps
    assert load_spec(path, allowed=[place / "secret" / "rows.jsonl"]).steps
    link(place, "way", "SECRET")
    assert load_spec(path, allowed=[place / "theirs" / "way"]).steps
    (place / "home" / ".config" / "caiflow").mkdir()
    (place / "home" / ".config" / "caiflow" / "allow.yaml").write_text("paths: [~/../secret]\n")
    assert load_spec(path).steps


def test_what_the_user_writes_by_hand_may_be_read(place: Path) -> None:
    rows, rules = str(place / "secret" / "rows.jsonl"), str(place / "theirs" / "rules.yaml")
    Path(rules).write_text("- be kind\n")
    assert load_spec(spec(place, load("none.jsonl")), sets=[f"steps.a.source={rows}"]).steps
    assert load_spec(spec(place, critique("none.yaml")), sets=[f"steps.b.constitution=[{rules}]"]).steps
    assert caiflow.validate({"caiflow": 1, "steps": {"a": {"op": "load", "source": rows}}}) == []
    assert caiflow.validate(spec(place, load("none.jsonl")), set={"steps.a.source": rows}) == []
    assert caiflow.validate(spec(place, load(rows))) != []
    assert caiflow.validate(spec(place, load(rows)), allow_paths=[place / "secret"]) == []


def test_the_working_folder_around_a_spec_may_be_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "project" / "specs").mkdir(parents=True)
    (place / "project" / "data").mkdir()
    (place / "project" / "data" / "rows.jsonl").write_text(ROW)
    (place / "project" / ".env").write_text(ROW)
    path = spec(place, load("../data/rows.jsonl"), "project/specs/spec.yaml")
    with pytest.raises(SpecError, match=f"--allow-path {place / 'project' / 'data'} "):
        load_spec(path)
    monkeypatch.chdir(place / "project")
    assert load_spec("specs/spec.yaml").steps
    with pytest.raises(SpecError, match=f"--allow-path {place / 'project' / '.env'} "):
        load_spec(spec(place, load("../.env"), "project/specs/other.yaml"))


def test_the_store_and_what_comes_with_caiflow_may_be_read(place: Path) -> None:
    (place / "store" / "artifacts").mkdir(parents=True)
    (place / "store" / "artifacts" / "rows.jsonl").write_text(ROW)
    link(place, "steps", str(place / "store" / "artifacts"))
    assert load_spec(spec(place, load("steps/rows.jsonl"))).steps
    assert load_spec(spec(place, "extends: quickstart\n")).steps
    bundled = Path(caiflow.engine.spec.load.__file__).parents[2] / "constitutions" / "harmless.yaml"
    assert load_spec(spec(place, critique(str(bundled)))).steps


def test_the_command_line_refuses_with_the_place_and_the_flag_that_then_works(place: Path) -> None:
    path = spec(place, critique("", "constitution: /etc/passwd\n"))
    told = caiflow_command("validate", str(path))
    assert told.returncode == 2
    assert told.stdout.startswith(f"{path}:2:15: /etc/passwd is outside this spec's folder; say --allow-path /etc ")
    assert "root:" not in told.stdout + told.stderr
    path = spec(place, load("../secret/rows.jsonl"))
    flag = caiflow_command("validate", str(path)).stdout.partition("say ")[2].split(" if")[0].split()
    assert caiflow_command("validate", str(path), *flag).returncode == 0


def caiflow_command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "caiflow", *args], capture_output=True, text=True, check=False)


# ------------------------------------------------------------------------------------------------------------- hosts

PRIVATE = [
    "10.0.0.5", "10.0.0.5:8000", "172.16.0.1", "172.31.255.254", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "[fc00::1]", "[fd12:3456::1]:8000", "[fe80::1]", "[::]", "[::ffff:10.0.0.5]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a00:5]",
    "[2002:0a00:0005::1]", "167772165", "0xa000005", "0x0a.0.0.5", "012.0.0.5", "10.5", "10.0.5", "2852039166", "0xA9FEA9FE",
    "10.0.0.5.", "224.0.0.1", "255.255.255.255",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
@pytest.mark.parametrize("field", ["base_url", "source"])
def test_no_server_in_a_private_network_is_asked(place: Path, host: str, field: str) -> None:
    models = load_spec(spec(place, asked(f"http://{host}/v1", field))).models
    with pytest.raises(PlanError, match=r"models\.m: .* is in a private network.* say --allow-host ") as refused:
        refuse_unallowed(models, Permissions(), trust_remote_code=True)
    flag = refused.value.hint.split()[2]
    assert flag == host.lower()
    refuse_unallowed(models, Permissions(hosts=frozenset([flag])), trust_remote_code=True)


HERE = [
    "localhost",
    "LOCALHOST:8000",
    "localhost.",
    "127.0.0.1",
    "127.8.8.8:1",
    "[::1]:8000",
    "0x7f000001",
    "[::ffff:127.0.0.1]",
]


@pytest.mark.parametrize("host", HERE)
def test_this_machine_itself_is_asked_freely(place: Path, host: str) -> None:
    refuse_unallowed(load_spec(spec(place, asked(f"http://{host}/v1"))).models, Permissions(), trust_remote_code=False)


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700::1111]", "134744072", "172.32.0.1", "[64:ff9b::808:808]"])
def test_what_anybody_can_reach_needs_no_word_without_a_key(place: Path, host: str) -> None:
    models = load_spec(spec(place, asked(f"http://{host}/v1"))).models
    refuse_unallowed(models, Permissions(), trust_remote_code=False)
    assert list(servers(models)) == [host]


TWO_FACED = [
    "http://localhost\\@evil.example/v1", "http://evil.example\\.localhost/v1", "http://local host/v1", "http://localhost\t/v1",
    "http://127.0.0.1#@evil.example/", "http://127.0.0.1?@evil.example/", "http://loc%61lhost/v1", "http://１２７.0.0.1/v1",
    "http://127。0。0。1/v1", "http://[::1/v1", "http://[::1]evil.example/v1", "http://[fe80::1%25eth0]/v1", "http:///v1",
    "http://localhost:80:80/v1", "http://localhost:port/v1", "http://localhost/v1\\n", "http://ⓛocalhost/",
]  # fmt: skip


@pytest.mark.parametrize("address", TWO_FACED)
@pytest.mark.parametrize("field", ["base_url", "source"])
def test_an_address_that_could_mean_two_servers_is_refused(place: Path, address: str, field: str) -> None:
    problems = check_spec(spec(place, asked(address, field)))
    assert [problem.path for problem in problems] == [f"models.m.{field}"]
    assert "address" in problems[0].message
    assert problems[0].line == 2


WITH_A_PASSWORD = [
    "http://me:s3cret@example.org/v1",
    "https://s3cret@example.org/v1",
    "http://127.0.0.1:s3cret@192.168.1.1",
    "http://a@s3cret@b/v1",
    "http://me:s3cret@[::1]:8000/v1",
]


@pytest.mark.parametrize("address", WITH_A_PASSWORD)
@pytest.mark.parametrize("field", ["base_url", "source"])
def test_an_address_with_a_password_is_refused_without_being_shown(place: Path, address: str, field: str) -> None:
    (problem,) = check_spec(spec(place, asked(address, field)))
    assert (problem.path, problem.line) == (f"models.m.{field}", 2)
    assert "passwords don't belong into the address" in problem.message
    assert "api_key_env" in problem.hint
    assert "s3cret" not in str(problem)


ELSEWHERE = [
    "http://127.0.0.1.evil.example/v1",
    "http://localhost.evil.example/v1", "http://evil.example/localhost", "http://evil.example:80/@127.0.0.1", "http://127.1/v1",
    "http://2130706433/v1", "http://0x7f.1/v1", "http://0177.0.0.1/v1", "http://[::ffff:127.0.0.1]/v1", "http://xlocalhost/v1",
]  # fmt: skip


@pytest.mark.parametrize("address", ELSEWHERE)
def test_no_spelling_gets_a_key_as_if_it_were_this_machine(place: Path, address: str) -> None:
    models = load_spec(spec(place, asked(address, more=", api_key_env: DATABASE_PASSWORD"))).models
    with pytest.raises(PlanError, match=r"the key in DATABASE_PASSWORD would be sent to .* say --allow-env"):
        refuse_unallowed(models, Permissions(), trust_remote_code=True)


def test_a_name_is_looked_up_before_its_server_is_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the name servers of this machine can't be told what to answer: the system's own function is replaced
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *_, **__: [(0, 0, 0, "", (NAMES[name], 0))])
    for name in ("inside.example", "cloud.example", "six.example"):
        models = load_spec(spec(place, asked(f"http://{name}:80/v1"))).models
        with pytest.raises(PlanError, match=rf"{name}:80 \({NAMES[name].partition('%')[0]}\) is in a private network"):
            refuse_unallowed(models, Permissions(), trust_remote_code=True)
    for name in ("outside.example", "own.example"):
        models = load_spec(spec(place, asked(f"http://{name}/v1"))).models
        refuse_unallowed(models, Permissions(), trust_remote_code=True)


NAMES = {
    "inside.example": "10.0.0.5", "cloud.example": "169.254.169.254", "six.example": "fe80::1%eth0",
    "outside.example": "8.8.8.8", "own.example": "127.0.1.1",
}  # fmt: skip


def test_a_host_that_the_user_named_is_asked(place: Path) -> None:
    path = spec(place, asked("http://10.0.0.5:8000/v1"))
    models = load_spec(path).models
    refuse_unallowed(models, Permissions(frozenset([KeySent("KEY", "10.0.0.5:8000")])), trust_remote_code=True)
    typed = load_spec(spec(place, asked("http://8.8.8.8/v1")), sets=["models.m.base_url=http://10.0.0.6/v1"])
    refuse_unallowed(typed.models, with_typed(typed.models, typed.source, Permissions()), trust_remote_code=True)
    assert with_typed(models, load_spec(path).source, Permissions()) == Permissions()
    remember("10.0.0.5:8000")
    remember(KeySent("KEY", "api.example"))
    assert permissions() == Permissions(frozenset([KeySent("KEY", "api.example")]), frozenset(["10.0.0.5:8000"]))
    refuse_unallowed(models, Permissions(), trust_remote_code=True)
    with pytest.raises(PlanError, match="private network"):
        refuse_unallowed(load_spec(spec(place, asked("http://10.0.0.5/v1"))).models, Permissions(), trust_remote_code=True)


def test_a_run_asks_no_private_server_and_says_the_flag(place: Path) -> None:
    told = caiflow_command("run", str(spec(place, asked("http://169.254.169.254/latest"))))
    assert told.returncode == 1
    assert "169.254.169.254 is in a private network" in told.stderr
    assert "say --allow-host 169.254.169.254 " in told.stderr
    assert not (place / "working" / "runs").exists()
    told = caiflow_command("run", "x.yaml", "--allow-host", "http://10.0.0.5/v1")
    assert told.returncode == 2
    assert "isn't HOST or HOST:PORT" in told.stderr


def asked(address: str, field: str = "base_url", more: str = "") -> str:
    named = f"{field}: {json.dumps(address)}" + (", source: large" if field == "base_url" else "")
    return generate(named + more)
