"""`caiflow submit`: hand a run over to a Ray cluster as a job, with the local files and own operators of its spec.

The job goes on whether or not anybody follows it. Its store is on a file system that the cluster's nodes share.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from caiflow.engine.commands.parser import allowed_by, from_zero, positive, read_spec, variant_arguments
from caiflow.engine.display.terminal import say
from caiflow.engine.errors import PlanError, SpecError

if TYPE_CHECKING:
    from caiflow.engine.run.on_ray.jobs import RunJob
    from caiflow.engine.spec.grammar import Spec
    from caiflow.engine.spec.permissions import Permissions

_LONGEST = 31
"""Characters of a job's name before the time."""
EXAMPLES = """\
  caiflow submit cai.yaml --address http://HEAD:8265 --store /shared/caiflow
  caiflow submit cai.yaml --address http://HEAD:8265 --env HF_TOKEN --detach
  caiflow submit --attach cai-20261130-080000 --address http://HEAD:8265     # follow it again, from its beginning
  caiflow submit --stop cai-20261130-080000 --address http://HEAD:8265       # what was done is kept
  caiflow submit cai.yaml --kuberay registry/caiflow:1 --store /store --claim caiflow --workers 2 --gpus 8 | kubectl apply -f -
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `submit`."""
    told = "a spec file, or the name of a bundled recipe; none with --attach and --stop"
    parser.add_argument("spec", metavar="SPEC", nargs="?", help=told)
    variant_arguments(parser)
    where = "the cluster's job server, http://HEAD:8265 (default: $RAY_API_SERVER_ADDRESS)"
    parser.add_argument("--address", metavar="URL", default=os.environ.get("RAY_API_SERVER_ADDRESS", ""), help=where)
    parser.add_argument("--store", metavar="DIR", help="the store, as the cluster's nodes see it (default: $CAIFLOW_HOME)")
    parser.add_argument(
        "--env", dest="variables", metavar="NAME", action="append", default=[],
        help="a variable that the run needs; whoever sees the cluster's jobs can read its value; may be repeated",
    )  # fmt: skip
    parser.add_argument("--trust-remote-code", action="store_true", help="as of `run`, on the cluster (off)")
    parser.add_argument("--grow", metavar="2x8", help="as of `run`: what the cluster's autoscaler may add")
    parser.add_argument("--detach", action="store_true", help="don't follow the run's log")
    parser.add_argument("--attach", metavar="JOB", help="follow a job that was submitted before")
    parser.add_argument("--stop", metavar="JOB", help="end a job; the next run of the spec goes on")
    parser.add_argument("--kuberay", metavar="IMAGE", help="print a RayJob for Kubernetes instead, with this image")
    parser.add_argument("--claim", metavar="NAME", default="", help="of --kuberay: the volume claim with the store")
    parser.add_argument("--workers", metavar="N", type=positive, default=1, help="of --kuberay: its nodes beside the head (1)")
    parser.add_argument("--gpus", metavar="N", type=from_zero, default=0, help="of --kuberay: the GPUs of each of them (0)")


def execute(args: Namespace) -> int:
    """Submit, and follow until the end; 0 done, 1 the job failed."""
    from caiflow.engine.run.on_ray.jobs import stop, submit

    if args.stop:
        stop(args.address, args.stop)
        return 0
    if args.attach:
        return _followed(args.address, args.attach)
    if not args.spec:
        raise SpecError("caiflow submit: no spec is named", "name one, or a job with --attach or --stop")
    spec = read_spec(args)
    with tempfile.TemporaryDirectory(prefix="caiflow-submit-") as folder:
        job = _job(args, spec, Path(folder))
        if args.kuberay:
            _print_kuberay(args, job)
            return 0
        submit(args.address, job)
    again = f"caiflow submit --attach {job.name} --address {args.address}"
    say(f"submitted {job.name}; to follow it again: {again}", file=sys.stderr)
    return 0 if args.detach else _followed(args.address, job.name)


def _job(args: Namespace, spec: Spec, folder: Path) -> RunJob:
    """Return the run as a job, its spec, local files and own operators copied into `folder`.

    Raises:
        PlanError: the store isn't known, a file is too large or may not be handed on, or a variable isn't set.
    """
    from caiflow.engine.run.on_ray.jobs import RunJob
    from caiflow.engine.run.on_ray.nodes import Growth

    store = args.store or os.environ.get("CAIFLOW_HOME", "")
    if not store:
        raise PlanError("no store is named", "say with --store where the nodes of the cluster see one that they share")
    if absent := [name for name in args.variables if name not in os.environ]:
        raise PlanError(f"--env: {', '.join(absent)} isn't set here", "export it, or leave it out")
    stays = _take_along(args, spec, folder)
    name = f"{_short(spec.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    command = ["python", "-m", "caiflow", "run", "spec.yaml", "--address", "auto", "--out", f"{store}/jobs/{name}"]
    paths = dict.fromkeys((*(path.resolve() for path in args.allowed_paths), *stays))
    command += [f"--grow={args.grow}"] if Growth.read(args.grow, "auto").nodes else []
    command += [*_allowing(allowed_by(args), paths), *(["--trust-remote-code"] if args.trust_remote_code else [])]
    own = {} if args.kuberay else {variable: os.environ[variable] for variable in args.variables}
    return RunJob(name, command, folder, {"CAIFLOW_HOME": store, **own})


def _short(name: str) -> str:
    """Return a spec's name as the beginning of a job's, which KubeRay takes with 47 characters, a letter first."""
    short = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (short if short[:1].isalpha() else f"run-{short}")[:_LONGEST].rstrip("-")


def _take_along(args: Namespace, spec: Spec, folder: Path) -> list[Path]:
    """Copy what the spec needs of this machine; return what isn't sent along, of a pattern of files their folder."""
    from caiflow.engine.lookback.export import Copier
    from caiflow.engine.plan.relocate import as_yaml, relocated
    from caiflow.engine.run.on_ray.jobs import MOST_BYTES
    from caiflow.engine.spec.reach import Reach

    copier = Copier(folder, MOST_BYTES, Reach(spec.base_dir, tuple(args.allowed_paths)))
    (folder / "spec.yaml").write_text(as_yaml(relocated(spec, copier.take)), encoding="utf-8")
    for path in (*copier.left_out, *copier.unasked):
        say(f"{path} isn't sent along: the nodes must have it there", file=sys.stderr)
    for operator in dict.fromkeys(step.op for step in spec.steps.values()):
        _take_operator(operator, folder)
    return [path if path.exists() else path.parent for path in (*copier.left_out, *copier.unasked)]


def _take_operator(name: str, folder: Path) -> None:
    """Copy the package of an operator that doesn't come with caiflow, and what says that it is one."""
    import shutil
    from importlib.util import find_spec

    from caiflow.engine.registry import is_built_in, plugins

    if is_built_in(name):
        return
    entry = plugins()[name]
    top = entry.module.partition(".")[0]
    found = find_spec(top)
    origin = Path(found.origin) if found and found.origin else None
    if origin is None or entry.dist is None:
        raise PlanError(f"the operator `{name}` has no file that could be sent along", "install it on the nodes")
    if origin.name == "__init__.py":
        shutil.copytree(origin.parent, folder / top, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copyfile(origin, folder / origin.name)
    told = folder / f"{entry.dist.name.replace('-', '_')}-{entry.dist.version}.dist-info"
    told.mkdir(exist_ok=True)
    for file in ("METADATA", "entry_points.txt"):
        (told / file).write_text(entry.dist.read_text(file) or "", encoding="utf-8")


def _allowing(allowed: Permissions, paths: Iterable[Path]) -> list[str]:
    """Return the options by which the run may do on the cluster what it may do here."""
    keys = [f"--allow-env={key}" for key in sorted(allowed.keys)]
    return [*keys, *(f"--allow-host={host}" for host in sorted(allowed.hosts)), *(f"--allow-path={path}" for path in paths)]


def _followed(address: str, name: str) -> int:
    """Show a job's log until it ends."""
    from caiflow.engine.run.on_ray.jobs import follow

    try:
        status = follow(address, name, lambda text: say(text, end="", flush=True))
    except KeyboardInterrupt:
        say(f"\n{name} goes on; to end it: caiflow submit --stop {name} --address {address}", file=sys.stderr)
        return 130
    say(f"{name}: {status.lower()}", file=sys.stderr)
    return 0 if status == "SUCCEEDED" else 1


def _print_kuberay(args: Namespace, job: RunJob) -> None:
    import yaml

    from caiflow.engine.run.on_ray.jobs import kuberay

    secrets = list(args.variables)
    made = kuberay(job, args.kuberay, workers=args.workers, gpus=args.gpus, claim=args.claim, secrets=secrets)
    if secrets:
        given = " ".join(f"--from-literal={name}=..." for name in secrets)
        say(f"first: kubectl create secret generic {job.name}-env {given}", file=sys.stderr)
    say(yaml.safe_dump_all(made, sort_keys=False, allow_unicode=True, width=120), end="")
