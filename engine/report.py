"""Tables for people: the end of a run, evaluation figures, plans, differences, lists. Renders; never computes or prints.

Every function returns something a rich console can print. Texts that came from a model or a file go in as `Text`, so that no
markup in them is obeyed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from caiflow.engine.board import clean, duration
from caiflow.engine.lanes import lanes
from caiflow.engine.progress import LOOKS

if TYPE_CHECKING:
    from caiflow.engine.compare import Change, RowsDiff, RunsDiff
    from caiflow.engine.history import RunLine

PLAN_LOOKS = {"cached": ("≡", "cyan"), "partial": ("◐", "yellow"), "run": ("●", "green")}
HEADLINES = ("train_loss", "eval_loss", "eval_accuracy", "accuracy", "tie_rate", "unparsable_rate", "dropped", "mixture")
"""Metrics that the table of steps shows, the most telling first."""

EVERYWHERE = ("max_failed", "retries", "concurrency", "constitution", "description", "resources")
"""Parameters that most operators share; they come last in a list of parameters."""


def plain_table(*columns: str, title: str = "") -> Table:
    """Return an empty table without lines; a column named `n:...` is right-aligned."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title=title or None, title_justify="left", title_style="bold")
    for column in columns:
        right = column.startswith("n:")
        table.add_column(column.removeprefix("n:"), justify="right" if right else "left", header_style="dim", no_wrap=right)
    return table


def steps_table(run: Mapping[str, Any]) -> Table:
    """Return the steps of a run (content of run.json), as a graph with what became of each."""
    steps = run["steps"]
    drawn = lanes({name: step.get("inputs", ()) for name, step in steps.items()})
    table = plain_table("", "step", "op", "n:rows in", "n:rows out", "n:time", "")
    for name, step in steps.items():
        taken = "" if step.get("seconds") is None or step["status"] == "cached" else duration(step["seconds"])
        symbol, style = LOOKS.get(step["status"], ("?", ""))
        label = Text(f"{symbol} {name}", style=style)
        table.add_row(
            drawn[name], label, step["op"], number(step["rows_in"]), number(step["rows_out"]), taken, _step_note(step)
        )
    return table


def _step_note(step: Mapping[str, Any]) -> Text:
    if step.get("error"):
        return Text(clean(step["error"]), style="red")
    if step["status"] not in ("done", "cached"):
        return Text(step["status"], style="dim")
    metrics = step.get("metrics") or {}
    parts = [f"{name} {number(metrics[name])}" for name in HEADLINES if isinstance(metrics.get(name), int | float)][:3]
    if step["status"] == "cached":
        parts.insert(0, "cached")
    return Text(", ".join(parts), style="dim")


def figures(metrics: Mapping[str, Any], title: str = "") -> Iterator[Table]:
    """Yield the tables of an evaluation's metrics.json: sets and checks down, models across; then one per other group."""
    models = metrics.get("models")
    if isinstance(models, Mapping) and models:
        yield _rates(models, title)
    for name, ratings in metrics.items():
        if name != "models" and isinstance(ratings, Mapping) and ratings:
            yield _leaves(ratings, f"{title}: {name}" if title else name)


def _rates(models: Mapping[str, Any], title: str) -> Table:
    table = plain_table("set", "check", *(f"n:{model}" for model in models), title=title)
    rows = dict.fromkeys((s, check) for sets in models.values() for s, checks in sets.items() for check in _named(checks))
    for set_name, check in rows:
        cells = [_rate(_named(sets.get(set_name)).get(check)) for sets in models.values()]
        table.add_row(set_name, check, *cells)
    return table


def _named(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rate(figure: Any) -> str:
    """Return `0.97 [0.91, 0.99]` for a rate with its interval, else the plain number."""
    if isinstance(figure, Mapping):
        if "rate" in figure:
            interval = f" [{figure['low']:.2f}, {figure['high']:.2f}]" if "low" in figure else ""
            return f"{figure['rate']:.2f}{interval}" if figure["rate"] is not None else "-"
        return ", ".join(f"{name} {number(value)}" for name, value in figure.items() if isinstance(value, int | float))
    return number(figure)


def _leaves(values: Mapping[str, Any], title: str, limit: int = 24) -> Table:
    table = plain_table("figure", "n:value", title=title)
    found = list(_flat(values))
    for path, value in found[:limit]:
        table.add_row(path, number(value))
    if len(found) > limit:
        table.add_row(f"... {len(found) - limit} more in metrics.json", "")
    return table


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and "rate" not in value:
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, Mapping):
            yield f"{prefix}{name}", _rate(value)
        elif not isinstance(value, list):
            yield f"{prefix}{name}", value


def plan_table(plan: Mapping[str, Any], inputs: Mapping[str, Sequence[str]]) -> Table:
    """Return a plan (its JSON form) as a graph: what is cached, what runs, how many rows and calls, and why."""
    drawn = lanes(inputs)
    table = plain_table("", "step", "op", "state", "n:rows", "n:cached", "n:to run", "n:calls", "reason")
    for step in plan["steps"]:
        symbol, style = PLAN_LOOKS.get(step["state"], ("?", ""))
        counts = [number(step.get(name)) for name in ("rows", "cached", "to_run", "calls")]
        label = Text(f"{symbol} {step['name']}", style=style)
        table.add_row(drawn.get(step["name"], ""), label, step["op"], step["state"], *counts, Text(clean(step["reason"])))
    return table


def plan_notes(plan: Mapping[str, Any]) -> Iterator[Text]:
    """Yield what a plan says beside its steps: estimates, steps that stream together, resources that are short."""
    calls = sum(step.get("calls") or 0 for step in plan["steps"])
    tokens = sum(step.get("tokens") or 0 for step in plan["steps"])
    if calls:
        yield Text(f"\nknown so far: {calls:,} model calls" + (f", about {tokens:,} tokens" if tokens else ""), style="dim")
    for segment in plan.get("segments", ()):
        if len(segment) > 1:
            yield Text(f"rows stream through {' -> '.join(segment)}", style="dim")
    for shortage in plan.get("resources", ()):
        yield Text(f"short: {shortage}", style="bold red")


def changes_table(found: Iterable[Change], old: str = "old", new: str = "new", title: str = "") -> Table:
    """Return changed values, one per line."""
    table = plain_table("what", old, new, title=title)
    for change in found:
        table.add_row(Text(change.path), Text(short(change.old), style="red"), Text(short(change.new), style="green"))
    return table


def diff_tables(diff: RunsDiff, old: str, new: str) -> Iterator[Table]:
    """Yield what differs between two runs: settings, prompts, rows with examples, metrics."""
    for title, found in (("settings", diff.settings), ("prompts and principles", diff.prompts)):
        if found:
            yield changes_table(found, old, new, title)
    if diff.rows:
        yield _rows_table(diff.rows)
        yield from (_examples_table(rows, old, new) for rows in diff.rows if rows.examples)
    if diff.metrics:
        yield changes_table(diff.metrics, old, new, "metrics")


def _rows_table(found: Sequence[RowsDiff]) -> Table:
    table = plain_table("step", "n:same", "n:changed", "n:only old", "n:only new", "n:flipped", "changed columns", title="rows")
    for rows in found:
        columns = ", ".join(f"{name} {count:,}" for name, count in rows.columns.items())
        flips = "" if rows.flips is None else f"{rows.flips:,} of {rows.pairs:,}"
        counts = [number(count) for count in (rows.same, rows.changed, rows.only_old, rows.only_new)]
        table.add_row(rows.step, *counts, flips, columns)
    return table


def _examples_table(rows: RowsDiff, old: str, new: str) -> Table:
    table = plain_table("uid", "column", old, new, title=f"{rows.step}: examples")
    for example in rows.examples:
        cells = (Text(short(example.old, 200), style="red"), Text(short(example.new, 200), style="green"))
        table.add_row(Text(example.uid[:12]), example.column, *cells)
    return table


def runs_table(runs: Sequence[RunLine], now: float | None = None) -> Table:
    """Return the list of runs, the latest last."""
    table = plain_table("run", "status", "steps", "n:time", "n:ago", "folder")
    for run in runs:
        symbol, style = LOOKS.get(run.status, ("?", ""))
        steps = ", ".join(f"{count} {status}" for status, count in run.steps.items())
        ago = duration(max(0.0, (time.time() if now is None else now) - run.started))
        taken = duration(run.seconds) if run.seconds is not None else ""
        table.add_row(Text(run.name), Text(f"{symbol} {run.status}", style=style), steps, taken, ago, Text(str(run.path)))
    return table


def card_table(card: Mapping[str, Any]) -> Table:
    """Return what there is to know of a trained model, its loss curve in one line of blocks."""
    table = plain_table("model", "")
    for name in ("path", "architecture", "adapter_of", "dtype"):
        if card[name]:
            table.add_row(name, Text(str(card[name])))
    table.add_row("weights", f"{card['size_bytes'] / 1e6:,.1f} MB")
    for name, value in _flat(card["metrics"]):
        table.add_row(name, number(value))
    losses = [point["loss"] for point in card["history"] if isinstance(point.get("loss"), int | float)]
    if losses:
        table.add_row("loss", f"{losses[0]:.3f} {sparkline(losses)} {losses[-1]:.3f}")
    return table


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return values as a line of block characters, averaged into at most `width` of them."""
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[i : i + size] for i in range(0, len(values), size))]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int((mean - low) / span * 8))] for mean in means)


def parameters_table(operator: Mapping[str, Any]) -> Table:
    """Return an operator's parameters (its part of the schema), groups of fields indented below their field."""
    table = plain_table("parameter", "type", "n:default", "meaning")
    required, definitions = operator.get("required", ()), operator.get("$defs", {})
    for name in sorted(operator["properties"], key=lambda name: (name in EVERYWHERE, name not in required)):
        if name != "op":
            _add_parameter(table, name, operator["properties"][name], definitions, name in required, 0)
    return table


def _add_parameter(
    table: Table, name: str, field: Mapping[str, Any], definitions: Mapping[str, Any], required: bool, depth: int
) -> None:
    default = "required" if required else short(field["default"], 24) if "default" in field else ""
    label = Text("  " * depth + name, style="bold" if required else "")
    table.add_row(label, Text(type_text(field, definitions)), Text(default), Text(field.get("description", "")))
    for group in _groups(field, definitions) if depth < 2 else ():
        for inner, inner_field in group.get("properties", {}).items():
            _add_parameter(table, inner, inner_field, definitions, inner in group.get("required", ()), depth + 1)


def _groups(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for option in (field, *field.get("anyOf", ()), *field.get("oneOf", ())):
        target = option.get("items", option) if isinstance(option.get("items"), Mapping) else option
        if "$ref" in target:
            yield definitions.get(target["$ref"].rpartition("/")[2], {})


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
    names = {"string": "text", "object": "mapping", "boolean": "true | false", "null": "none"}
    kinds = field.get("type", "any")
    return " | ".join(names.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def row_text(row: Mapping[str, Any], columns: Sequence[str] | None = None) -> Text:
    """Return one row for reading: the uid as a heading, then each column with its text."""
    text = Text()
    text.append(f"── {row.get('uid', '')}\n", style="bold cyan")
    for name in columns or [name for name in row if name != "uid"]:
        if row.get(name) is not None:
            text.append(f"{name}  ", style="bold")
            text.append(f"{_cell(row[name])}\n")
    return text


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return _safe(value)
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) and "content" in turn for turn in value):
        return "".join(f"\n  {turn.get('role', '')}: {_safe(str(turn['content']))}" for turn in value)
    return number(value) if isinstance(value, int | float) else _safe(json.dumps(value, ensure_ascii=False, default=str))


def _safe(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c == "\n")


def number(value: Any) -> str:
    """Return a number in few characters, or the value as text; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def short(value: Any, limit: int = 80) -> str:
    """Return a value as one line of at most `limit` characters."""
    text = clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= limit else text[: limit - 3] + "..."
