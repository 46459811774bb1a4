"""A real S3-compatible server on loopback (moto's), with a bucket in it, that can hold back or refuse what is written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

BUCKET = "results"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
"""The variables by which a client may write to it; it takes any keys."""


@dataclass
class BucketServer:
    """What runs: where it is, what was asked of it, and what it does with what is written."""

    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    held: str = ""
    """A part of the keys whose writing is held back until `let_go`."""
    refused: str = ""
    """A part of the keys whose writing is refused."""
    holding: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)

    def address(self, prefix: str = "cai", bucket: str = BUCKET) -> str:
        """Return what $CAIFLOW_ARTIFACTS is to be."""
        return f"s3://{bucket}/{prefix}?scheme=http&endpoint_override=127.0.0.1:{self.port}&region=us-east-1"

    def keys(self, part: str = "") -> list[str]:
        """Return the keys in the bucket that have a part."""
        from moto.s3.models import s3_backends

        kept = s3_backends["123456789012"]["global"].buckets[BUCKET].keys
        return sorted(key for key in kept if part in key)

    def written(self, part: str = "") -> int:
        """Return how many objects were sent whose key has a part."""
        return sum(method == "PUT" and part in path for method, path in self.asked)

    def wrap(self, app: Any) -> Any:
        """Return a WSGI application that does so."""

        def answer(environ: dict[str, Any], start: Any) -> Any:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.asked.append((method, path))
            if method in ("PUT", "POST") and self.refused and self.refused in path:
                start("403 Forbidden", [("Content-Type", "application/xml")])
                return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
            if method in ("PUT", "POST") and self.held and self.held in path:
                self.holding.set()
                self.let_go.wait(60)
            return app(environ, start)

        return answer


@contextmanager
def bucket_server() -> Iterator[BucketServer]:
    """Serve until the block ends."""
    pytest.importorskip("moto", reason="needs moto[s3] with flask and flask-cors, an S3 on loopback")
    pytest.importorskip("flask_cors")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    served = BucketServer()
    app = served.wrap(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    served.port = server.server_port
    backend = s3_backends["123456789012"]["global"]
    backend.reset()
    backend.create_bucket(BUCKET, "us-east-1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()
