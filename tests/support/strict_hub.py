"""A hub on loopback that takes and gives repositories as huggingface_hub speaks of them, and refuses whatever isn't in order.

It runs in a thread of the test and checks by itself: tokens, fields, digests of large files, the metadata of cards. It speaks
no Xet (`HF_HUB_DISABLE_XET=1`): large files go by git-lfs's protocol.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_a_token_of_this_test"
LARGE = (".safetensors", ".parquet", ".bin")
LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "openrail", "llama3", "other"}
SIZES = re.compile(r"n<1K|1K<n<10K|10K<n<100K|100K<n<1M|1M<n<10M|10M<n<100M")


@dataclass
class Repository:
    """One repository: its files now, and how many commits it has."""

    kind: str
    private: bool = False
    commits: list[str] = field(default_factory=lambda: ["0" * 40])
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)


@dataclass
class StrictHub:
    """What is on the hub, what was uploaded to it and not committed yet, and each request in words."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    """By `models/OWNER/NAME` and `datasets/OWNER/NAME`."""
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


class Refused(Exception):
    """The request isn't in order."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def check_card(text: str) -> list[str]:
    """Return what is wrong with a card's metadata."""
    if not text.startswith("---\n"):
        return ["no metadata"]
    found = yaml.safe_load(text[4:].partition("\n---\n")[0])
    if not isinstance(found, dict):
        return ["metadata is no mapping"]
    wrong = [] if found.get("license", "other") in LICENCES else [f"license must be one of {sorted(LICENCES)}"]
    wrong += [f"{name} must be a list" for name in ("tags", "datasets") if not isinstance(found.get(name, []), list)]
    wrong += [f"size category {size}" for size in found.get("size_categories", []) if not SIZES.fullmatch(size)]
    for result in (result for model in found.get("model-index", []) for result in model["results"]):
        parts = (("task", "type"), ("dataset", "type"), ("dataset", "name"))
        wrong += [f"model-index: {part} has no {key}" for part, key in parts if not result.get(part, {}).get(key)]
        lacking = [metric for metric in result["metrics"] if not {"type", "value"} <= set(metric)]
        wrong += ["model-index: a metric has no type or value"] if lacking or not result["metrics"] else []
    return wrong


@contextmanager
def strict_hub() -> Iterator[StrictHub]:
    """Serve until the block ends."""
    hub = StrictHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def handle_one(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, headers, body = _Answers(hub, dict(self.headers.items())).to(self.command, path, sent)
            except Refused as refused:
                told = {"X-Error-Message": str(refused), **({"X-Error-Code": refused.code} if refused.code else {})}
                status, headers, body = refused.status, told, json.dumps({"error": str(refused)}).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_HEAD = handle_one  # noqa: N815 - the library's names

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


Answer = tuple[int, dict[str, str], bytes]
ROUTES = (
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/main", "preupload"),
    ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/upload/([0-9a-f]{64})", "upload"),
    ("POST", r"/verify/([0-9a-f]{64})", "verify"),
    ("POST", r"/api/(models|datasets)/([^/]+/[^/]+)/commit/main", "commit"),
    ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", "info"),
    ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)/?", "tree"),
    ("GET|HEAD", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
)


def _json(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _fields(sent: bytes, wanted: set[str], more: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    found = json.loads(sent)
    if not wanted <= set(found) <= wanted | more:
        raise Refused(400, f"fields {sorted(found)}, wanted {sorted(wanted)}")
    return dict(found)


class _Answers:
    """The hub's answers to one request."""

    def __init__(self, hub: StrictHub, headers: dict[str, str]) -> None:
        self.hub = hub
        said = {name.lower(): value for name, value in headers.items()}.get("authorization", "")
        if said and said != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid user token.")
        self.known = bool(said)

    def to(self, method: str, path: str, sent: bytes) -> Answer:
        for methods, pattern, name in ROUTES:
            if method in methods.split("|") and (found := re.fullmatch(pattern, path)):
                if method == "POST" and name != "validate" and not self.known:
                    raise Refused(401, "Invalid username or password.")
                answer: Answer = getattr(self, name)(sent, *found.groups())
                return answer
        raise Refused(404, f"no route {method} {path}")

    def repository(self, kind: str | None, name: str) -> Repository:
        found = self.hub.repositories.get(f"{(kind or 'models').rstrip('/')}/{name}")
        if found is None or (found.private and not self.known):
            raise Refused(401 if not self.known else 404, "Repository not found", "RepoNotFound")
        return found

    def revision(self, repository: Repository, revision: str | None) -> None:
        if revision not in (None, "main", repository.commits[-1]):
            raise Refused(404, "Revision not found", "RevisionNotFound")

    def create(self, sent: bytes) -> Answer:
        asked = _fields(sent, {"name", "organization", "type"}, {"visibility"})
        if asked["organization"] == "others":
            raise Refused(403, 'You don\'t have the rights to create a model under the namespace "others".')
        kind = {"model": "models", "dataset": "datasets"}[asked["type"]]
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
        if f"{kind}/{name}" in self.hub.repositories:
            return _json({"error": "You already created this model repo", "url": url}, 409)
        self.hub.repositories[f"{kind}/{name}"] = Repository(kind, asked.get("visibility") == "private")
        return _json({"url": url})

    def validate(self, sent: bytes) -> Answer:
        asked = _fields(sent, {"content", "repoType"})
        wrong = check_card(asked["content"])
        return _json({"errors": [{"message": text} for text in wrong], "warnings": []}, 400 if wrong else 200)

    def preupload(self, sent: bytes, kind: str, name: str) -> Answer:
        repository, asked = self.repository(kind, name), _fields(sent, {"files"})
        modes = []
        for file in asked["files"]:
            if set(file) != {"path", "sample", "size"} or len(base64.b64decode(file["sample"], validate=True)) > 512:
                raise Refused(400, f"preupload of {file}")
            held = repository.files.get(file["path"])
            oid = None if held is None else _oid(held, file["path"] in repository.large)
            mode = "lfs" if file["path"].endswith(LARGE) or file["size"] > 10_000_000 else "regular"
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": modes})

    def batch(self, sent: bytes, kind: str | None, name: str) -> Answer:
        self.repository(kind, name)
        asked = _fields(sent, {"operation", "transfers", "objects", "hash_algo"}, {"ref"})
        if asked["operation"] != "upload" or asked["hash_algo"] != "sha256" or "basic" not in asked["transfers"]:
            raise Refused(422, f"batch {asked}")
        return _json({"transfer": "basic", "objects": [self._action(each) for each in asked["objects"]]})

    def _action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        here = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.hub.objects:
            return here
        actions = {action: {"href": f"{self.hub.url}/{action}/{wanted['oid']}"} for action in ("upload", "verify")}
        return {**here, "actions": actions}

    def upload(self, sent: bytes, oid: str) -> Answer:
        if hashlib.sha256(sent).hexdigest() != oid:
            raise Refused(400, "the object isn't what its digest says")
        self.hub.objects[oid] = sent
        return 200, {}, b""

    def verify(self, sent: bytes, oid: str) -> Answer:
        asked = _fields(sent, {"oid", "size"})
        if asked["oid"] != oid or asked["size"] != len(self.hub.objects.get(oid, b"")):
            raise Refused(404, "the object isn't there")
        return _json({})

    def commit(self, sent: bytes, kind: str, name: str) -> Answer:
        repository = self.repository(kind, name)
        header, *operations = [json.loads(line) for line in sent.splitlines()]
        if header["key"] != "header" or not header["value"]["summary"]:
            raise Refused(400, "a commit begins with its summary")
        paths = [operation["value"]["path"] for operation in operations]
        if not operations or len(set(paths)) < len(paths) or any(".." in path.split("/") for path in paths):
            raise Refused(400, f"paths {paths}")
        for operation in operations:
            self._apply(repository, operation["key"], operation["value"])
        made = hashlib.sha1(sent + repository.commits[-1].encode()).hexdigest()
        repository.commits.append(made)
        prefix = "" if kind == "models" else "datasets/"
        return _json({"success": True, "commitOid": made, "commitUrl": f"{self.hub.url}/{prefix}{name}/commit/{made}"})

    def _apply(self, repository: Repository, key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file" and value["encoding"] == "base64" and not path.endswith(LARGE):
            repository.files[path] = base64.b64decode(value["content"], validate=True)
        elif key == "lfsFile" and value["algo"] == "sha256" and len(self.hub.objects.get(value["oid"], b"")) == value["size"]:
            repository.files[path] = self.hub.objects[value["oid"]]
            repository.large.add(path)
        else:
            raise Refused(400, f"{key} of {path}")
        if path == "README.md" and (wrong := check_card(repository.files[path].decode())):
            raise Refused(400, "; ".join(wrong))

    def info(self, sent: bytes, kind: str, name: str, revision: str | None) -> Answer:
        repository = self.repository(kind, name)
        self.revision(repository, revision)
        return _json(
            {
                "_id": "1", "id": name, "sha": repository.commits[-1], "private": repository.private, "gated": False,
                "disabled": False, "tags": [], "siblings": [{"rfilename": file} for file in repository.files],
                "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            }
        )  # fmt: skip

    def tree(self, sent: bytes, kind: str, name: str, revision: str) -> Answer:
        repository = self.repository(kind, name)
        self.revision(repository, revision)
        return _json([_entry(path, data, path in repository.large) for path, data in repository.files.items()])

    def resolve(self, sent: bytes, kind: str | None, name: str, revision: str, path: str) -> Answer:
        repository = self.repository(kind, name)
        self.revision(repository, revision)
        if path not in repository.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data = repository.files[path]
        etag = f'"{_oid(data, path in repository.large)}"'
        return 200, {"X-Repo-Commit": repository.commits[-1], "ETag": etag, "Accept-Ranges": "bytes"}, data


def _oid(data: bytes, large: bool) -> str:
    """Return git's own name of a file, or of what stands for a large one its sha256."""
    if large:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes, large: bool) -> dict[str, Any]:
    told = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if large:
        told["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return told
