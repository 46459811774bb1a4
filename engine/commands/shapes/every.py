"""Every shape by its name; `caiflow run --json` prints events and `caiflow show RUN STEP --json` rows, each a line."""

from __future__ import annotations

from caiflow.engine.commands.shapes import looking, reference, working
from caiflow.engine.commands.shapes.base import Output

OUTPUTS: dict[str, type[Output]] = {
    "validate": working.Validate, "plan": working.PlanOutput, "try": working.Try, "why": working.Why,
    "inspect": working.Inspect, "head": working.Head,
    "runs": looking.Runs, "run": looking.RunOutput, "figures": looking.Figures, "model": looking.Model, "diff": looking.Diff,
    "verify": looking.Verify, "replay": looking.Replay,
    "gate": looking.GateOutput, "report": looking.ReportOutput, "export": looking.ExportOutput,
    "import": looking.Import, "merge": looking.Merge,
    "push": looking.Push,
    "ctl": working.Ctl,
    "gc": looking.Gc, "tag": looking.Tag,
    "init": reference.Init, "specs": reference.Specs, "ops": reference.Ops, "constitution": reference.ConstitutionOutput,
    "doctor": reference.Doctor,
}  # fmt: skip
"""In the order of the page."""
