"""Tables of the commands that explain and look back: plans, changes, differences, runs, parameters, rows.

Every function returns something a rich console can print. Texts that came from a model or a file go in as `Text`, so that no
markup in them is obeyed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from caiflow.engine.display.board import clean, duration
from caiflow.engine.display.console import UNBROKEN
from caiflow.engine.display.report import figure, number, plain_table
from caiflow.engine.display.screen import LOOKS, WIDE, marked
from caiflow.engine.display.step_graph import lanes
from caiflow.engine.display.terminal import escaped
from caiflow.engine.machine import size

if TYPE_CHECKING:
    from rich.console import RenderableType

    from caiflow.engine.display.console import Console
    from caiflow.engine.lookback.compare import Change, FigureChange, RowsDiff, RunsDiff
    from caiflow.engine.lookback.history import RunLine

PLAN_LOOKS = {"cached": ("≡", "cyan"), "partial": ("◐", "yellow"), "run": ("●", "green")}
MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "beside")
EVERYWHERE = ("max_failed", "retries", "concurrency", "require", "constitution", "description", "resources")
"""Parameters that most operators share; they come last in a list of parameters."""


def plan_table(plan: Mapping[str, Any], inputs: Mapping[str, Sequence[str]], width: int = UNBROKEN) -> Table:
    """Return a plan (its JSON form) as a graph: what is cached, what runs, how many rows and calls, and why.

    A narrow terminal has no room for the graph: reasons would break its lines.
    """
    drawn, graph = lanes(inputs), width >= WIDE
    table = plain_table(*["1:"] * graph, "1:step", "n:cached", "n:to run", "n:calls", "why")
    for step in plan["steps"]:
        symbol, style = PLAN_LOOKS.get(step["state"], ("?", ""))
        counts = [_bound(step, name) for name in ("cached", "to_run", "calls")]
        label = Text(f"{symbol} {step['name']}", style=style)
        why = "cached" if step["state"] == "cached" else clean(step["reason"])
        table.add_row(*[Text(drawn.get(step["name"], ""))] * graph, label, *counts, Text(why))
    return table


def _bound(step: Mapping[str, Any], name: str) -> str:
    """Return a count of a plan's step, with a sign before it where it is a bound."""
    value = step.get(name)
    return f"≤ {number(value)}" if value and name != "cached" and step.get("at_most") else number(value)


def plan_notes(plan: Mapping[str, Any]) -> Iterator[Text]:
    """Yield what a plan says beside its steps: estimates, steps that stream together, resources that are short."""
    calls = sum(step.get("calls") or 0 for step in plan["steps"])
    tokens = sum(step.get("tokens") or 0 for step in plan["steps"])
    if calls:
        cost = f", about {tokens:,} tokens" if tokens else ""
        yield Text(f"\nknown so far: at most {calls:,} model calls{cost}", style="dim")
    for rule in plan.get("rules", ()):
        yield Text(f"changed rule: {rule}", style="yellow")
    for model in plan.get("unchecked", ()):
        told = "its files aren't on this machine yet, which tell its layers, positions and chat template"
        yield Text(f"not checked: {model}; {told}", style="dim")
    for told in plan.get("unreached", ()):
        yield Text(f"not checked: {clean(told)}", style="yellow")
    for way in plan.get("ways", ()):
        yield Text(clean(way), style="dim")
    for segment in plan.get("segments", ()):
        if len(segment) > 1:
            yield Text(f"rows stream through {' -> '.join(segment)}", style="dim")
    for step, bounds in plan.get("require", {}).items():
        required = ", ".join(f"{name} {bound}" for name, bound in bounds.items())
        yield Text(f"{step} must have {required} before the steps behind it begin", style="dim")
    for shortage in plan.get("resources", ()):
        yield Text(f"short: {shortage}", style="bold red")


def memory_table(memory: Sequence[Mapping[str, Any]]) -> Table:
    """Return what each training needs of a device's memory, part by part; `all at once` is less than their sum."""
    table = plain_table("training", *(f"n:{part}" for part in (*MEMORY_PARTS, "all at once")), "fits")
    for step in memory:
        if "peak" not in step:
            table.add_row(Text(step["step"]), *[""] * (len(MEMORY_PARTS) + 1), Text("not checked", style="dim"))
            continue
        verdict = Text("yes", style="green") if step["fits"] else Text("does not fit", style="bold red")
        table.add_row(Text(step["step"]), *(size(step[part]) for part in (*MEMORY_PARTS, "peak")), verdict)
    return table


def learnt_notes(learnt: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """Yield whether the trainings learn the tokens that engines sample, and where they don't."""
    same = [step["step"] for step in learnt if step["checked"] and not step["parts"]]
    if same:
        yield Text(f"tokens learnt are tokens sampled, by chat template and tokenizer: {', '.join(same)}", style="dim")
    for step in learnt:
        for part in step["parts"]:
            yield Text(f"{step['step']}: learnt is not what is sampled in {part}", style="yellow")
        if not step["checked"]:
            yield Text(f"tokens of {step['step']} not checked: no chat template and tokenizer.json here to check", style="dim")


def memory_notes(memory: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """Yield what the trainings' memory is held against, why some isn't known, and what would fit of what doesn't."""
    for step in memory:
        if step["unchecked"]:
            yield Text(f"memory of {step['step']} not checked: {step['unchecked']}", style="dim")
        elif not step["fits"]:
            there = step["devices"]
            has = (
                f"{there['number']} GPUs of {size(there['size_bytes'])}"
                if there["gpu"]
                else f"{size(there['size_bytes'])} of memory"
            )
            would = "; ".join(step["would_fit"]) or "nothing that is known here; take a smaller model or larger devices"
            yield Text(f"does not fit: {step['step']} needs {size(step['peak'])} a device, got {has}", style="bold red")
            yield Text(f"  what would: {would}", style="yellow")


def forecast_table(forecast: Sequence[Mapping[str, Any]]) -> Table:
    """Return what the calls of each step will take, in tokens, and their time and cost where those are known."""
    timed, priced = (any(step[name] is not None for step in forecast) for name in ("seconds", "cost"))
    counted = ("n:calls", "n:prompt tokens", "n:of them new", "n:answered")
    table = plain_table("1:step", "model", *counted, *["n:time"] * timed, *["n:cost"] * priced)
    for step in forecast:
        sign = "≤ " if step["at_most"] else ""
        counts = [sign + number(step[name]) for name in ("calls", "prompt", "computed", "completion")]
        time_and_cost = [sign + duration(step["seconds"]) if step["seconds"] is not None else ""] * timed
        time_and_cost += [sign + f"{step['cost']:.2f}" if step["cost"] is not None else ""] * priced
        table.add_row(Text(step["step"]), Text(step["model"]), *counts, *time_and_cost)
    return table


def forecast_notes(plan: Mapping[str, Any]) -> Iterator[Text]:
    """Yield what a forecast rests on, and what it leaves out."""
    if any(step["at_most"] for step in plan["forecast"]):
        told = "no answer of these steps is known yet; `caiflow run SPEC --sample 20` tells how long they get"
        yield Text(f"≤: {told}", style="dim")
    for step, why in plan["not_foreseen"].items():
        yield Text(f"no forecast of {step}: {clean(why)}", style="dim")


def uncut(table: Table) -> Table:
    """Have a table break what is too wide for its cells, instead of cutting it off; return the table."""
    for column in table.columns:
        column.overflow = "fold"
    return table


def changes_table(found: Iterable[Change], old: str = "old", new: str = "new", title: str = "") -> Table:
    """Return changed values, one per line."""
    table = plain_table("what", old, new, title=title)
    for change in found:
        table.add_row(Text(change.path), Text(short(change.old), style="red"), Text(short(change.new), style="green"))
    return table


def diff_tables(diff: RunsDiff, old: str, new: str, *, every: bool = False) -> Iterator[Table]:
    """Yield what differs between two runs: settings, prompts, rows with examples, figures, notes.

    Figures that differ within their intervals are counted, and shown with `every`.
    """
    for title, found in (("settings", diff.settings), ("prompts and principles", diff.prompts)):
        if found:
            yield changes_table(found, old, new, title)
    if diff.rows:
        yield _rows_table(diff.rows)
        yield from (_examples_table(rows, old, new) for rows in diff.rows if rows.examples)
    for step in dict.fromkeys(change.step for change in diff.figures):
        yield _figures_table(step, [change for change in diff.figures if change.step == step], old, new, every=every)
    if diff.notes:
        yield changes_table(diff.notes, old, new, "notes")


def _figures_table(step: str, found: Sequence[FigureChange], old: str, new: str, *, every: bool) -> Table:
    """Return the figures of a step that differ, a mark before those whose intervals are apart; `every` has the others too."""
    shown = [change for change in found if every or change.apart is not False]
    table = plain_table("1:", "figure", f"n:{old}", f"n:{new}", title=f"figures of {step}")
    for change in shown:
        cells = (_figure(value) for value in (change.old, change.new))
        table.add_row(Text("≠" if change.apart else "", style="bold"), Text(change.name), *cells)
    if any(change.apart for change in shown):
        table.add_row("", Text("≠ the intervals are apart", style="dim"))
    if left := len(found) - len(shown):
        table.add_row("", Text(f"{left} more within their intervals; --all shows them", style="dim"))
    return table


def _figure(value: Any) -> Text:
    return Text(short(value if isinstance(value, str) else figure(value) if value is not None else "none"))


def _rows_table(found: Sequence[RowsDiff]) -> Table:
    table = plain_table("step", "n:same", "n:changed", "n:only old", "n:only new", "n:flipped", "changed columns", title="rows")
    for rows in found:
        columns = ", ".join(f"{name} {count:,}" for name, count in rows.columns.items())
        flips = "" if rows.flips is None else f"{rows.flips:,} of {rows.pairs:,}"
        counts = [number(count) for count in (rows.same, rows.changed, rows.only_old, rows.only_new)]
        table.add_row(rows.step, *counts, flips, columns)
    return table


def _examples_table(rows: RowsDiff, before: str, after: str) -> Table:
    table = plain_table("uid", "column", before, after, title=f"{rows.step}: examples")
    for example in rows.examples:
        old, new = short(example.old, 200), short(example.new, 200)
        cells = (marked(new, old, style="bold red"), marked(old, new))
        table.add_row(Text(example.uid[:12]), example.column, *cells)
    return table


def runs_table(runs: Sequence[RunLine], now: float | None = None) -> Table:
    """Return the list of runs, the latest last."""
    table = plain_table("run", "status", "steps", "n:notes", "n:time", "n:ago", "folder")
    for run in runs:
        symbol, style = LOOKS.get(run.status, ("?", ""))
        steps = ", ".join(f"{count} {status}" for status, count in run.steps.items())
        ago = duration(max(0.0, (time.time() if now is None else now) - run.started))
        taken = duration(run.seconds) if run.seconds is not None else ""
        status, notes = Text(f"{symbol} {run.status}", style=style), Text(number(run.notes or None), style="yellow")
        said = "".join(f"  #{tag}" for tag in run.tags) + (f"  {short(run.note, 60)}" if run.note else "")
        name = Text.assemble(run.name, (f" {short(run.variant, 40)}" if run.variant else "", "dim"), (said, "cyan"))
        table.add_row(name, status, steps, notes, taken, ago, Text(str(run.path)))
    return table


def parameters_table(operator: Mapping[str, Any]) -> Table:
    """Return an operator's parameters (its part of the schema), groups of fields indented below their field."""
    table = plain_table("parameter", "type", "n:default", "meaning")
    for row in _parameters(operator):
        table.add_row(*row)
    return table


def _parameters(operator: Mapping[str, Any]) -> Iterator[tuple[Text, Text, Text, Text]]:
    required, definitions = operator.get("required", ()), operator.get("$defs", {})
    for name in sorted(operator["properties"], key=lambda name: (name in EVERYWHERE, name not in required)):
        if name != "op":
            yield from _parameter(name, operator["properties"][name], definitions, name in required)


def parameters_list(operator: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield an operator's parameters for a narrow terminal: each on a line, its meaning below in the whole width."""
    for name, kind, default, meaning in _parameters(operator):
        depth = len(name.plain) - len(name.plain.lstrip())
        value = f" = {default.plain}" if default.plain not in ("", "required") else f"  {default.plain}".rstrip()
        yield Text.assemble(name, "  ", (f"{kind.plain}{value}", "dim"))
        yield Padding(meaning, (0, 0, 0, depth + 4)) if meaning.plain else Text()


def _parameter(
    name: str, field: Mapping[str, Any], definitions: Mapping[str, Any], required: bool, depth: int = 0
) -> Iterator[tuple[Text, Text, Text, Text]]:
    default = "required" if required else short(field["default"], 24) if "default" in field else ""
    label = Text("  " * depth + name, style="bold" if required else "")
    yield label, Text(type_text(field, definitions)), Text(default), Text(field.get("description", ""))
    for group in _groups(field, definitions) if depth < 3 else ():
        for inner, inner_field in group.get("properties", {}).items():
            yield from _parameter(inner, inner_field, definitions, inner in group.get("required", ()), depth + 1)


def _groups(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the groups of fields that a value, an item of a list or a value of a mapping may be."""
    if "$ref" in field:
        yield definitions.get(field["$ref"].rpartition("/")[2], {})
    inside = [*field.get("anyOf", ()), *field.get("oneOf", ()), field.get("items"), field.get("additionalProperties")]
    for option in inside:
        if isinstance(option, Mapping):
            yield from _groups(option, definitions)


def type_text(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return a schema's type in a few words: `integer`, `text | list of text`, `hard | soft`, `step with rows`."""
    if "x-ref" in field:
        return "step with rows" if field["x-ref"] == "rows" else "model"
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " | ".join(dict.fromkeys(type_text(option, definitions) for option in field[union]))
    if "$ref" in field:
        target = definitions.get(field["$ref"].rpartition("/")[2], {})
        return type_text(target, definitions) if "properties" not in target else "fields below"
    if field.get("type") == "array":
        items = field.get("items")
        return f"list of {type_text(items, definitions)}" if isinstance(items, Mapping) else "list"
    values = field.get("additionalProperties")
    if field.get("type") == "object" and isinstance(values, Mapping):
        return f"mapping to {type_text(values, definitions)}"
    names = {"string": "text", "array": "list", "object": "mapping", "boolean": "true | false", "null": "none"}
    kinds = field.get("type", "any")
    return " | ".join(names.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def row_text(row: Mapping[str, Any], columns: Sequence[str] | None = None) -> Text:
    """Return one row for reading: the uid as a heading, then each column with its text."""
    text = Text()
    text.append(escaped(f"── {row.get('uid', '')}\n"), style="bold cyan")
    for name in columns or [name for name in row if name != "uid"]:
        if row.get(name) is not None:
            text.append(escaped(f"{name}  "), style="bold")
            text.append(escaped(f"{_cell(row[name])}\n"))
    return text


def row_card(row: Mapping[str, Any], console: Console, columns: Sequence[str] | None = None) -> Iterator[Text]:
    """Yield one row for reading at a terminal: each text wrapped beside its column's name, the words marked that were changed.

    Without `columns`, those that people read: texts, conversations, numbers, what is true; the last line counts the others.
    """
    shown = [name for name in columns or _read_by_people(row) if row.get(name) is not None and name != "uid"]
    label = max(map(len, shown), default=0) + 2
    yield Text.assemble(("── ", "dim"), (escaped(str(row.get("uid", ""))), "bold cyan"))
    for name in shown:
        text = Text(escaped(_cell(row[name]).strip("\n")))
        if name == "revision" and isinstance(row.get("response"), str) and "\n" not in str(row[name]):
            text = marked(escaped(row["response"]), escaped(row[name]))
        for place, line in enumerate(text.wrap(console, max(20, console.width - label))):
            yield Text.assemble((escaped("" if place else name).ljust(label), "bold"), line)
    left = len(row) - len(shown) - ("uid" in row)
    if left and columns is None:
        yield Text(f"{left} more columns with --all", style="dim")


def _read_by_people(row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a row that are for people rather than for other steps, no text twice."""
    texts = {value for value in row.values() if isinstance(value, str)}
    lists = {name: value for name, value in row.items() if isinstance(value, list)}
    repeats = {name for name, value in lists.items() if all(isinstance(one, str) and one in texts for one in value)}
    return [name for name, value in row.items() if name not in repeats and (value is True or _is_readable(value))]


def _is_readable(value: Any) -> bool:
    if isinstance(value, list) and value:
        return all(isinstance(one, str) or (isinstance(one, Mapping) and "content" in one) for one in value)
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) and "content" in turn for turn in value):
        return "".join(f"\n  {turn.get('role', '')}: {turn['content']}" for turn in value)
    return number(value) if isinstance(value, int | float) else json.dumps(value, ensure_ascii=False, default=str)


def short(value: Any, limit: int = 80) -> str:
    """Return a value as one line of at most `limit` characters."""
    text = clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= limit else text[: limit - 3] + "..."
