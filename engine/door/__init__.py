"""Constitutional AI from one YAML file; this is what `import caiflow` gives.

    import caiflow

    caiflow.plan("cai.yaml", sample=20)["steps"]           # what would run, and why
    run = caiflow.run("cai.yaml", sample=20, set={"steps.sl_cai.learning_rate": 1e-4})
    run["clean"].table.to_pandas()                         # rows; also to_polars, lazy, dataset
    run["sl_cai"].path                                     # a model: what from_pretrained takes
    run.figures["scores"]["models"]                        # evaluate's figures as plain dicts
    caiflow.open_run("last")                               # the same of any run of this machine's store

A spec is a file, a bundled recipe's name, or a dict of the same shape. What is wrong is raised as on the command line: a
SpecError has every mistake with its file, line and column under `problems`.

The folder is the package `caiflow` itself, beside which setuptools lays engine, operators and the others (pyproject.toml); its
modules are never imported as `caiflow.engine.door`. Nothing heavy is imported here: every command and every worker passes by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import CaiflowError, EngineError, PlanError, Problem, SpecError, StepError, StoreError
from caiflow.engine.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from caiflow.engine.lookback.opened import Run
    from caiflow.engine.spec.load import Spec
    from caiflow.engine.spec.permissions import Permissions

__all__ = [
    "CaiflowError", "EngineError", "PlanError", "Problem", "SpecError", "StepError", "StoreError",
    "__version__", "open_run", "plan", "run", "validate",
]  # fmt: skip

__version__ = VERSION
"""Which caiflow this is: the code's own word, which an editable install of other code can't contradict."""

_DICT = "spec (a dict)"
"""Stands for the file in the places of a spec that was given as a dict; the lines are those of its YAML."""


def run(  # noqa: PLR0913 - each, by name, is what an option of `caiflow run` is
    spec: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    set: Mapping[str, Any] | None = None,
    profile: str | None = None,
    sample: int | None = None,
    only: str | None = None,
    until: str | None = None,
    address: str | None = None,
    grow: str | None = None,
    trust_remote_code: bool = False,
    allow_env: Mapping[str, str] | None = None,
    allow_hosts: Sequence[str] = (),
    allow_paths: Sequence[str | Path] = (),
    progress: bool = True,
) -> Run:
    """Validate, plan and run a spec, and return the finished run; what was done before isn't done again.

    `out` is the run's folder (by default runs/NAME/TIMESTAMP), `set` changes values by their dotted paths, `sample` takes that
    many rows of every source, `address` is a Ray cluster's, to which its autoscaler may add what `grow` says
    ("2x8": nodes, and the GPUs of each). Ctrl-C stops it within seconds; the same call goes on.

    Beside: `allow_env` lets keys be sent to servers, variable -> host; `allow_hosts` names servers in private
    networks that may be asked, `allow_paths` folders and files outside its own folder that may be read.

    Raises:
        SpecError: the spec is wrong; `problems` has every finding.
        PlanError: it can't be carried out here.
        StepError: a step failed; what the others did is kept, and the message names the run's folder.
        KeyboardInterrupt: it was stopped.
    """
    from contextlib import nullcontext
    from pathlib import Path

    from caiflow.engine.commands.run import default_out
    from caiflow.engine.display.progress import display
    from caiflow.engine.lookback.opened import Run
    from caiflow.engine.run import runner
    from caiflow.engine.run.on_ray.nodes import Growth
    from caiflow.engine.store.artifacts import Store
    from caiflow.engine.store.checkpoints import KEPT

    loaded = _loaded(spec, set, profile, sample, allow_paths)
    with display() if progress else nullcontext() as listener:
        result = runner.run(
            loaded, Store(), Path(out) if out is not None else default_out(loaded),
            only=only, until=until, address=address, growth=Growth.read(grow, address), on_event=listener,
            trust_remote_code=trust_remote_code, allowed=_allowed(allow_env, allow_hosts),
        )  # fmt: skip
    if result.status == "interrupted":
        raise KeyboardInterrupt(f"{KEPT} in {result.run_dir}; the same call goes on")
    finished = Run(result.run_dir)
    if result.status == "failed":
        raise StepError(_failures(finished))
    return finished


def plan(  # noqa: PLR0913 - as `run`
    spec: str | Path | Mapping[str, Any],
    *,
    set: Mapping[str, Any] | None = None,
    profile: str | None = None,
    sample: int | None = None,
    until: str | None = None,
    allow_env: Mapping[str, str] | None = None,
    allow_hosts: Sequence[str] = (),
    allow_paths: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Return what `run` would do now, as `caiflow plan --json` prints it: steps with state, rows and reason.

    What is allowed is as in `run`; without its user's word a server isn't asked which model it has.

    Raises:
        SpecError: the spec is wrong.
        PlanError: it can't be carried out here.
    """
    from caiflow.engine.plan.plan import make_plan
    from caiflow.engine.store.artifacts import Store

    loaded = _loaded(spec, set, profile, sample, allow_paths)
    return make_plan(loaded, Store(), until=until, allowed=_allowed(allow_env, allow_hosts)).to_json()


def validate(
    spec: str | Path | Mapping[str, Any],
    *,
    set: Mapping[str, Any] | None = None,
    profile: str | None = None,
    allow_paths: Sequence[str | Path] = (),
) -> list[Problem]:
    """Return everything wrong with a spec, in order of place; empty where it is right."""
    try:
        _loaded(spec, set, profile, None, allow_paths)
    except SpecError as error:
        if not error.problems:
            raise
        return list(error.problems)
    return []


def open_run(name: str | Path = "last") -> Run:
    """Return a run: by its folder, `last`, its folder's name, or the name of its spec (the latest of those).

    Raises:
        CaiflowError: there is no such run; the message has the nearest.
    """
    from caiflow.engine.lookback.history import find_run
    from caiflow.engine.lookback.opened import Run
    from caiflow.engine.store.artifacts import Store

    return Run(find_run(str(name), Store()))


def _loaded(
    spec: str | Path | Mapping[str, Any],
    values: Mapping[str, Any] | None,
    profile: str | None,
    sample: int | None,
    allow_paths: Sequence[str | Path],
) -> Spec:
    import json
    from pathlib import Path

    from caiflow.engine.commands.parser import find_spec
    from caiflow.engine.spec.load import load_spec

    allowed = [Path(path) for path in allow_paths]
    sets = [f"{path}={json.dumps(value)}" for path, value in (values or {}).items()]
    if not isinstance(spec, Mapping):
        return load_spec(find_spec(str(spec)), sets=sets, profile=profile, sample=sample, allowed=allowed)
    import yaml

    text = yaml.safe_dump(_plain(spec), sort_keys=False, allow_unicode=True)
    return load_spec(_DICT, text=text, sets=sets, profile=profile, sample=sample, allowed=allowed)


def _allowed(allow_env: Mapping[str, str] | None, allow_hosts: Sequence[str]) -> Permissions:
    from caiflow.engine.spec.permissions import KeySent, Permissions

    return Permissions(frozenset(KeySent(*pair) for pair in (allow_env or {}).items()), frozenset(allow_hosts))


def _plain(value: Any) -> Any:
    """Return a dict's values as YAML knows them: paths as texts, tuples as lists."""
    from os import PathLike, fspath

    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return fspath(value) if isinstance(value, PathLike) else value


def _failures(failed: Run) -> str:
    steps = failed.record["steps"].items()
    lines = [f"{name}: {step.get('error') or 'failed'}" for name, step in steps if step["status"] == "failed"]
    return "\n".join([*(lines or ["the run failed"]), f"what was done is kept in {failed.path}; the same call goes on"])
