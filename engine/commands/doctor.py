"""`caiflow doctor`: is this machine fit for runs, and if not, what to do."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from caiflow.engine.commands.parser import print_json

EXAMPLES = """\
  caiflow doctor
  CAIFLOW_HOME=/data/caiflow caiflow doctor --json
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def execute(args: Namespace) -> int:
    """Examine this machine; 1 if anything is broken."""
    import gc

    from caiflow.engine.doctor import examine
    from caiflow.engine.store.artifacts import default_home

    gc.enable()  # off since the start; the libraries that are tried here expect to be tidied up at the end
    findings = []
    for finding in examine(default_home()):
        findings.append(finding)
        if not args.json:
            mark = {"ok": "✓", "note": "·", "broken": "✗"}[finding.verdict]
            hint = f"\n  {'':<13} {finding.hint}" if finding.hint else ""
            print(f"{mark} {finding.what:<13} {finding.detail}{hint}", flush=True)
    if args.json:
        print_json([asdict(finding) for finding in findings])
    return 1 if any(finding.verdict == "broken" for finding in findings) else 0
