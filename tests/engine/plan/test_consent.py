"""What a spec may do only by its user's word: have keys sent to servers, and hand an engine arguments that may run code."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.errors import PlanError
from caiflow.engine.plan.consent import (
    keys_sent,
    parse_key_sent,
    refuse_unallowed,
    servers,
    unallowed_keys,
)
from caiflow.engine.spec.grammar import ModelEntry
from caiflow.engine.spec.permissions import KeySent, Permissions, permissions_file, remember

KEY = KeySent("JUDGE_KEY", "api.example.com")


@pytest.fixture(autouse=True)
def _own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def judge(address: str, **entry: str) -> dict[str, ModelEntry]:
    return {"judge": ModelEntry(source="large", base_url=address, api_key_env="JUDGE_KEY", **entry)}


def test_a_key_leaves_this_machine_only_after_its_users_word() -> None:
    models = judge("https://api.example.com/v1")
    with pytest.raises(
        PlanError, match=r"models\.judge\.api_key_env.*JUDGE_KEY would be sent to api\.example\.com.*--allow-env"
    ):
        refuse_unallowed(models, Permissions(), trust_remote_code=True)
    refuse_unallowed(models, Permissions(frozenset([KEY])), trust_remote_code=False)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://api.example.com/v1", "api.example.com"),
        ("https://API.Example.com:8443/v1", "api.example.com:8443"),
        ("https://127.0.0.1.example.com/v1", "127.0.0.1.example.com"),
        ("http://10.0.0.5:8000/v1", "10.0.0.5:8000"),
        ("http://169.254.169.254/latest", "169.254.169.254"),
        ("http://0.0.0.0:8000/v1", "0.0.0.0:8000"),
    ],
)
def test_the_host_is_the_one_that_gets_the_key_whatever_its_address_looks_like(address: str, host: str) -> None:
    assert list(keys_sent(judge(address))) == [KeySent("JUDGE_KEY", host)]
    assert servers(judge(address)) == {host: ["judge"]}


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:8000/v1", "http://127.9.9.9/v1"]
)
def test_a_server_on_this_machine_needs_no_word(address: str) -> None:
    assert keys_sent(judge(address)) == {}
    assert servers(judge(address)) == {}


def test_a_model_that_is_loaded_here_sends_no_key() -> None:
    models = {"base": ModelEntry(source="tiny", api_key_env="JUDGE_KEY")}
    assert keys_sent(models) == {}
    assert servers(models) == {}


def test_the_permission_is_for_one_variable_and_one_host() -> None:
    models = judge("https://api.example.com/v1")
    others = [
        KeySent("JUDGE_KEY", "api.example.org"),
        KeySent("OTHER_KEY", "api.example.com"),
        KEY._replace(host="api.example.com:81"),
    ]
    assert list(unallowed_keys(models, Permissions(frozenset(others)))) == [KEY]


def test_what_the_user_allowed_for_good_is_kept_and_added_to() -> None:
    models = judge("https://api.example.com/v1")
    remember(KEY)
    remember(KeySent("JUDGE_KEY", "api.example.org"))
    remember(KeySent("OTHER_KEY", "api.example.com"))
    assert unallowed_keys(models, Permissions()) == {}
    assert permissions_file().read_text(encoding="utf-8").count("JUDGE_KEY") == 1


def test_a_file_of_permissions_that_cannot_be_read_allows_nothing() -> None:
    permissions_file().parent.mkdir(parents=True)
    for text in ("api_keys: [", "api_keys: 3", "[]", "", "path: [/x]", "paths: [x]", "paths: [3]", "hosts: {a: b}"):
        permissions_file().write_text(text, encoding="utf-8")
        with pytest.raises(PlanError, match=r"allow\.yaml: can't be read"):
            unallowed_keys(judge("https://api.example.com/v1"), Permissions())


def test_the_command_line_names_a_variable_and_a_host() -> None:
    assert parse_key_sent("JUDGE_KEY=API.example.com:81") == KeySent("JUDGE_KEY", "api.example.com:81")
    for text in ("JUDGE_KEY", "=api.example.com", "JUDGE_KEY=", "JUDGE_KEY=https://api.example.com"):
        with pytest.raises(ValueError, match="VARIABLE=HOST"):
            parse_key_sent(text)


def test_only_who_trusts_a_spec_lets_it_hand_anything_to_the_engine() -> None:
    models = {"m": ModelEntry(source="tiny", other_engine_args={"worker_cls": "theirs.Worker"})}
    with pytest.raises(PlanError, match=r"models\.m\.other_engine_args: worker_cls may run code.*--trust-remote-code"):
        refuse_unallowed(models, Permissions(), trust_remote_code=False)
    refuse_unallowed(models, Permissions(), trust_remote_code=True)
    refuse_unallowed({"m": ModelEntry(source="tiny", engine_args={"max_num_seqs": 4})}, Permissions(), trust_remote_code=False)
