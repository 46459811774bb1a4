"""The address that a name was found to have is the one that is connected to, whatever the name leads to a moment later."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from caiflow.engine.errors import EngineError, PlanError
from caiflow.engine.llm.base import Completion, ModelSource, Request, Sampling
from caiflow.engine.llm.load import load_engine
from caiflow.engine.llm.served.listing import ask_listed
from caiflow.engine.llm.served.pinned import Pin, pinned_async
from caiflow.engine.plan.consent import named_by_hand, refuse_unallowed
from caiflow.engine.spec.grammar import ModelEntry
from caiflow.engine.spec.permissions import KeySent, Permissions
from support.asking import ask
from support.bad_server import bad_server, said

NAME = "judge.example"


class Names:
    """A name server that says something else each time; the system's own can't be told what to answer."""

    def __init__(self) -> None:
        self.answers: list[list[str]] = []
        self.asked = 0

    def getaddrinfo(self, name: Any, port: Any, *given: Any, **options: Any) -> list[Any]:
        name = name.decode() if isinstance(name, bytes) else name
        if name != NAME:
            return ASK_SYSTEM(name, port, *given, **options)
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not found:
            raise socket.gaierror(-2, "Name or service not known")
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in it], socket.SOCK_STREAM, 6, "", (it, port or 0)) for it in found]


ASK_SYSTEM = socket.getaddrinfo


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Names:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.getaddrinfo)
    return found


def source(url: str, **options: Any) -> ModelSource:
    address = url.replace("127.0.0.1", NAME)
    return ModelSource("served", "x", engine="openai", options={"base_url": address, "timeout_s": 5.0, **options})


def answers(url: str, count: int = 1, **options: Any) -> list[Any]:
    engine = load_engine(source(url, **options))
    try:
        return [ask(engine, [Request(f"one {n}", Sampling(max_tokens=4))])[0] for n in range(count)]
    finally:
        engine.close()


def test_the_address_that_was_looked_at_is_the_one_that_is_asked(names: Names) -> None:
    names.answers = [["127.0.0.1"], ["127.0.0.1"], ["10.0.0.5"]]
    with bad_server() as server:
        found = answers(server.url, 3)
        assert all(isinstance(answer, Completion) for answer in found), found
        assert {headers["Host"].partition(":")[0] for headers in server.headers} == {NAME}
    assert names.asked == 2  # for the models, and for all calls


@pytest.mark.parametrize("leads", [["10.0.0.5"], ["169.254.169.254"], ["fd00::1"], ["127.0.0.1", "192.168.0.7"], ["0.0.0.0"]])
def test_a_name_that_leads_into_a_private_network_meanwhile_is_not_asked(names: Names, leads: list[str]) -> None:
    with bad_server() as server:
        names.answers = [["127.0.0.1"], leads]
        (answer,) = answers(server.url)
        assert isinstance(answer, EngineError)
        assert "in a private network" in str(answer)
        assert f"--allow-host {NAME}" in str(answer)
        names.answers = [leads]
        with pytest.raises(EngineError, match="in a private network"):
            ask_listed(source(server.url).options["base_url"], {}, 5.0, by_hand=False)
        assert server.calls == []


def test_of_several_addresses_one_that_answers_is_asked(names: Names) -> None:
    names.answers = [["127.0.0.1", "127.3.2.1", "::1"]]
    with bad_server() as server:
        assert all(isinstance(answer, Completion) for answer in answers(server.url, 2))


def test_a_name_that_cannot_be_looked_up_for_a_moment_stays_where_it_was(names: Names) -> None:
    pin = Pin(NAME)
    names.answers = [["127.0.0.1"], []]
    pin.look_up()
    pin.look_up()
    request = httpx.Request("GET", f"http://{NAME}/v1")
    assert [str(way.url) for way in pin.ways(request)] == ["http://127.0.0.1/v1"]
    with pytest.raises(httpx.ConnectError, match="can't be looked up"):
        list(Pin(NAME).ways(request))


def test_what_the_user_named_is_asked_wherever_it_leads(names: Names) -> None:
    names.answers = [["10.0.0.5"]]
    entry = ModelEntry(source="m", base_url=f"http://{NAME}/v1", api_key_env="KEY")
    key, both = (
        Permissions(frozenset([KeySent("KEY", NAME)])),
        Permissions(frozenset([KeySent("KEY", NAME)]), frozenset([NAME])),
    )
    with pytest.raises(PlanError, match=f"{NAME} \\(10.0.0.5\\) is in a private network"):
        refuse_unallowed({"m": entry}, key, trust_remote_code=False)
    refuse_unallowed({"m": entry}, both, trust_remote_code=False)
    assert not named_by_hand(entry, key)
    assert named_by_hand(entry, both)
    assert pinned_async(entry.address, httpx.Limits(), by_hand=True) is None


def test_a_redirect_is_not_followed(names: Names) -> None:
    names.answers = [["127.0.0.1"]]
    with bad_server() as aim, bad_server() as server:
        for status in (301, 302, 307, 308):
            server.reply = lambda body, n, status=status: (status, {"Location": aim.url + "/completions"}, "")
            (answer,) = answers(server.url)
            assert isinstance(answer, EngineError)
            assert str(status) in str(answer)
        assert aim.calls == []
        assert server.calls


def test_no_proxy_is_asked_to_find_a_name_that_its_user_did_not_give(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    names.answers = [["8.8.8.8"]]
    entry = ModelEntry(source="m", base_url=f"http://{NAME}/v1")
    with bad_server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        with pytest.raises(PlanError, match=f"{NAME} is asked through a proxy.* say --allow-host {NAME} "):
            refuse_unallowed({"m": entry}, Permissions(), trust_remote_code=False)
        with pytest.raises(EngineError, match="through a proxy"):
            load_engine(source("http://127.0.0.1/v1"))
        assert proxy.calls == []
        refuse_unallowed({"m": entry}, Permissions(hosts=frozenset([NAME])), trust_remote_code=False)
        proxy.reply = lambda body, n: said("by the proxy")
        (answer,) = answers("http://127.0.0.1/v1", by_hand=True)
        assert isinstance(answer, Completion)
        assert proxy.paths == [f"http://{NAME}/v1/completions"]
        monkeypatch.setenv("no_proxy", NAME)
        refuse_unallowed({"m": entry}, Permissions(), trust_remote_code=False)


@pytest.fixture
def certified(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server with a certificate for the name, which trusts itself, and the file of that."""
    if not shutil.which("openssl"):
        pytest.skip("openssl isn't here to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    made = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *subject, *made], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": "m"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"https://{NAME}:{server.server_port}/v1", certificate
    server.shutdown()
    server.server_close()


def test_the_certificate_is_still_held_against_the_name(
    names: Names, certified: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names.answers = [["127.0.0.1"]]
    address, certificate = certified
    with pytest.raises(httpx.ConnectError, match="certificate"):
        ask_listed(address, {}, 5.0, by_hand=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert ask_listed(address, {}, 5.0, by_hand=False).json() == {"data": [{"id": "m"}]}

    async def asked() -> int:
        way = pinned_async(address, httpx.Limits(), by_hand=False)
        async with httpx.AsyncClient(transport=way) as client:
            return (await client.get(f"{address}/models")).status_code

    assert asyncio.run(asked()) == 200
