"""`caiflow plan`: what a run would do now, step by step, and why."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from caiflow.engine import machine
from caiflow.engine.commands.parser import allowed_by, open_store, positive, print_json, read_spec, spec_arguments

if TYPE_CHECKING:
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.run.on_ray.cluster import Cluster
    from caiflow.engine.spec.grammar import Spec, Step

EXAMPLES = """\
  caiflow plan cai.yaml
  caiflow plan cai.yaml --set constitution=mine.yaml
  caiflow plan cai.yaml --until clean
  caiflow plan cai.yaml --profile full --gpus 8x80GB
  caiflow plan cai.yaml --forecast             # and what its calls will take: tokens, time, cost
  caiflow plan cai.yaml --address HEAD:6379    # and whether that Ray cluster can hold it
  caiflow plan cai.yaml --json | jq '.steps[] | select(.state != "cached")'
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `plan`."""
    spec_arguments(parser)
    parser.add_argument("--until", metavar="STEP", help="plan up to this step and no further")
    parser.add_argument("--gpus", metavar="8x80GB", help="hold trainings against these GPUs instead of this machine's memory")
    parser.add_argument("--address", metavar="RAY", help="hold the steps to run against this Ray cluster, too; none is begun")
    parser.add_argument(
        "--grow", metavar="2x8", help="with --address: its autoscaler may add so many nodes of so many GPUs each"
    )
    parser.add_argument("--forecast", action="store_true", help="say what the calls will take: tokens, time, cost")
    parser.add_argument(
        "--tokens-per-second", metavar="N", type=positive, help="of answers, over all calls at once, for the forecast's time"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def execute(args: Namespace) -> int:
    """Plan the spec; nothing is run."""
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.plan.memory import parse_devices
    from caiflow.engine.plan.plan import make_plan

    devices = parse_devices(args.gpus) if args.gpus else None
    spec, store, allowed = read_spec(args), open_store(), allowed_by(args)
    plan = make_plan(spec, store, until=args.until, devices=devices, allowed=allowed).to_json()
    plan |= {"forecast": [], "not_foreseen": {}}
    if args.forecast:
        from caiflow.engine.plan.forecast import foresee

        gpus = bool(devices.gpu if devices else machine.gpus())
        rate = args.tokens_per_second
        plan |= foresee(spec, store, until=args.until, tokens_per_second=rate, gpus=gpus, allowed=allowed).to_json()
    _show(plan, spec, as_json=args.json)
    if args.address or args.grow:
        from caiflow.engine.run.on_ray.cluster import Cluster
        from caiflow.engine.run.on_ray.nodes import Growth

        cluster = Cluster(args.address, Growth.read(args.grow, args.address))
        wanted = [spec.steps[step["name"]] for step in plan["steps"] if step["state"] != "cached"]
        _refuse_unfit(cluster, Resolver(spec, store, allowed=allowed), wanted)
    return 0


def _refuse_unfit(cluster: Cluster, resolver: Resolver, steps: Sequence[Step]) -> None:
    """Raise where a cluster can't hold the steps, as a run would before its first one.

    Raises:
        ClusterError: says what they want and what there is.
    """
    from caiflow.engine.run.fitting import refuse_unfit

    try:
        cluster.start()
        refuse_unfit(resolver, cluster, steps)
    finally:
        cluster.close()


def _show(plan: Mapping[str, Any], spec: Spec, *, as_json: bool) -> None:
    if as_json:
        print_json("plan", plan)
        return
    from caiflow.engine.commands import tables
    from caiflow.engine.display.console import unbroken_console
    from caiflow.engine.spec.graph import edges

    console = unbroken_console()
    edges_of = edges(spec)
    order = {step["name"]: edges_of[step["name"]] for step in plan["steps"]}
    console.print(tables.plan_table(plan, order, console.width))
    if plan["forecast"]:
        console.print(tables.forecast_table(plan["forecast"]))
    if plan["memory"]:
        console.print(tables.memory_table(plan["memory"]))
    for note in (
        *tables.plan_notes(plan),
        *tables.forecast_notes(plan),
        *tables.memory_notes(plan["memory"]),
        *tables.learnt_notes(plan["learnt"]),
    ):
        console.print(note)
