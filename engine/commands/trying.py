"""`caiflow try`: one prompt through the steps that lead to a step, with the exact text that each model saw."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from caiflow.engine.commands.parser import allowed_by, one_of, open_store, print_json, read_spec, spec_arguments
from caiflow.engine.errors import SpecError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from caiflow.engine.run.trying import Exchange, Tried

EXAMPLES = """\
  caiflow try cai.yaml critique "How do I pick a lock?"
  caiflow try cai.yaml revision "Hello" --set steps.critique.few_shot=0
  caiflow try cai.yaml critique '{"prompt": "Hello", "response": "Go away."}'   # an answer of yours
  caiflow try cai.yaml preference "Hello" --json | jq -r '.steps[].calls[].saw'
"""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `try`."""
    spec_arguments(parser)
    parser.add_argument("step", metavar="STEP", help="a step that works row by row: generate, critique, revise, judge, grade")
    parser.add_argument("prompt", metavar="PROMPT", help="a prompt, or a JSON object with further columns, such as `response`")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let model repositories run their own code on this machine (off)"
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def execute(args: Namespace) -> int:
    """Try the prompt; nothing of it is kept."""
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.plan.consent import refuse_unallowed, with_typed
    from caiflow.engine.run.trying import as_json, try_row, way_to

    spec, allowed = read_spec(args), allowed_by(args)
    one_of(args.step, spec.steps, "steps")
    refuse_unallowed(spec.models, with_typed(spec.models, spec.source, allowed), trust_remote_code=args.trust_remote_code)
    row = loaded(args.prompt)
    way = way_to(spec, args.step, row)
    resolver = Resolver(spec, open_store(), trust_remote_code=args.trust_remote_code, allowed=allowed)
    tried = try_row(resolver, way, row)
    if args.json:
        print_json("try", {"row": row, "steps": [as_json(one) for one in tried], "passed": list(way.passed)})
        return 0
    from caiflow.engine.display.console import Console

    console = Console()
    for one in tried:
        console.print(*_shown(one), sep="\n")
    if way.passed:
        console.print(f"passed by, since they take whole tables: {', '.join(way.passed)}", style="dim")
    return 0


def loaded(given: str) -> dict[str, Any]:
    """Return the row that `load` makes of a prompt, or of a JSON object.

    Raises:
        SpecError: it makes none.
    """
    from caiflow.engine import registry
    from caiflow.engine.operator import StepContext

    load: Any = registry.operator("load")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "prompt.jsonl"
        path.write_text(json.dumps(_record(given)) + "\n", encoding="utf-8")
        step = load(load.params_type(source=str(path), format="auto"), StepContext(base_dir=Path(folder)))
        look = step.look(1)
    if not look.rows or "prompt" not in look.rows[0]:
        why = look.bad[0]["reason"] if look.bad else f"it is read as {look.format}, without a prompt"
        raise SpecError(f"{given[:80]!r}: no row can be made of it: {why}", 'write a text, or {"prompt": "...", ...}')
    row: dict[str, Any] = look.rows[0]
    return row


def _record(given: str) -> Mapping[str, Any]:
    if given.lstrip().startswith("{"):
        try:
            found = json.loads(given)
        except ValueError:
            return {"prompt": given}
        if isinstance(found, dict):
            return found
    return {"prompt": given}


def _shown(tried: Tried) -> Iterator[RenderableType]:
    from rich.text import Text

    asks = f", asks {tried.model}" if tried.model else ""
    yield Text.assemble((f"━━ {tried.step}", "bold cyan"), (f"  {tried.op}{asks}", "dim"))
    for exchange in tried.exchanges:
        yield from _exchange(exchange)
    if tried.dropped:
        yield Text.assemble(("left out: ", "yellow"), tried.dropped)
    for row in tried.made:
        from caiflow.engine.commands.tables import row_text

        yield row_text({"uid": "wrote", **row})


def _exchange(exchange: Exchange) -> Iterator[RenderableType]:
    from rich.text import Text

    request, answer = exchange.request, exchange.answer
    saw = f"saw {exchange.prompt_tokens} tokens" if exchange.saw is not None else f"was sent {exchange.prompt_tokens} tokens"
    yield Text(f"── {saw}", style="dim")
    yield Text(exchange.saw if exchange.saw is not None else _sent(request.prompt, request.prefill))
    if answer.logprobs is not None:
        yield Text("── log-probabilities of what comes next", style="dim")
        yield Text("\n".join(f"{choice!r}  {value:.4f}" for choice, value in answer.logprobs.items()))
        return
    yield Text(f"── answered {answer.completion_tokens} tokens, {answer.finish}", style="dim")
    yield Text(answer.text)


def _sent(prompt: Any, prefill: str) -> str:
    """Return what a server was sent, which lays it out by itself."""
    turns = [prompt] if isinstance(prompt, str) else [f"[{turn['role']}] {turn['content']}" for turn in prompt]
    return "\n".join([*turns, *([f"[assistant, begun] {prefill}"] if prefill else [])])
