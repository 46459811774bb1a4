"""`caiflow view`: a run's report on this machine alone, made anew for who looks, again and again while the run goes on."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from caiflow.engine.commands.parser import named_run, port, positive
from caiflow.engine.display.terminal import say
from caiflow.engine.errors import CaiflowError

EXAMPLES = """\
  caiflow view last                       # while it runs, too: the page follows it
  caiflow view last --port 8765
"""
HOST = "127.0.0.1"
FOLLOW_S = 3
"""After how long a browser asks again while the run goes on."""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `view`."""
    parser.add_argument("run", metavar="RUN", help="a run (see caiflow show --help)")
    parser.add_argument("--port", type=port, default=0, help="port to listen on (default: a free one)")
    parser.add_argument("--rows", metavar="N", type=positive, default=1000, help="most rows of each step (default 1000)")


def execute(args: Namespace) -> int:
    """Serve until it is ended."""
    with server(named_run(args.run), args.port, args.rows) as serving:
        say(f"showing the run at http://{HOST}:{serving.server_port}/ until Ctrl-C", file=sys.stderr, flush=True)
        serving.serve_forever()
    return 0


def server(run_dir: Path, port: int = 0, rows: int = 1000) -> ThreadingHTTPServer:
    """Return a server of a run's report; only browsers that mean this machine by its name are answered.

    Raises:
        CaiflowError: the port can't be had.
    """
    from caiflow.engine.lookback.opened import Run
    from caiflow.engine.lookback.report.page import page

    class Answers(BaseHTTPRequestHandler):
        """Makes the page for each request."""

        def do_GET(self) -> None:
            meant = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if meant not in (HOST, "localhost") or self.path.partition("?")[0] != "/":
                self.send_error(404)
                return
            run = Run(run_dir)
            self._give(page(run, limit=rows).encode("utf-8"), going_on=run.status == "running")

        def _give(self, text: bytes, *, going_on: bool) -> None:
            self.send_response(200)
            for name, value in (("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")):
                self.send_header(name, value)
            if going_on:
                self.send_header("Refresh", str(FOLLOW_S))
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Say nothing of each request."""

    try:
        return ThreadingHTTPServer((HOST, port), Answers)
    except OSError as error:
        raise CaiflowError(f"view: port {port}: {error.strerror}", "leave --port out for a free one") from error
