"""The end of a run, for people: its steps, and the figures of its evaluations and models. Renders; never computes or prints.

Every function returns something a rich console can print. Texts that came from a model or a file go in as `Text`, so that no
markup in them is obeyed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from caiflow.engine.display.board import clean, counted_notes, duration, note_text
from caiflow.engine.display.console import UNBROKEN
from caiflow.engine.display.screen import LOOKS, WIDE
from caiflow.engine.display.step_graph import lanes
from caiflow.engine.identity import arms_of
from caiflow.engine.store.journal import MADE

HEADLINES = {
    "train_loss": "mean loss", "eval_loss": "eval loss", "eval_accuracy": "accuracy", "accuracy": "accuracy",
    "ties": "ties", "unparsable": "unparsable",
}  # fmt: skip
"""Metrics that the table of steps shows, the most telling first, and how they are called there."""

CENTRES = ("rate", "mean", "elo", "perplexity", "value")
"""The key of a figure's value, beside its interval `low` and `high`."""
MARKS = ("boilerplate", "truncated", "repetitive", "duplicate")
"""The checks for marks of a broken model, which say nothing where nobody has them."""
MANY = 4
"""With more models than this, an evaluation lists them one below the other."""
ABREAST = 12
"""Most columns of a table, however wide the terminal is."""
GLANCE = 40
"""Most of an error that the table of steps shows: below it stands the whole."""
PRECISE = 1000
"""From this many prompts on, rates are worth a decimal."""
_Cells = Mapping[tuple[str, str], Mapping[str, Any]]
_Compared = Mapping[tuple[str, str], Mapping[str, Text]]
"""By set and check, what is said of the arms of each model that has several."""


def plain_table(*columns: str, title: str = "") -> Table:
    """Return an empty table without lines. A column `n:...` is right-aligned; that and `1:...` never break a line."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title=title or None, title_justify="left", title_style="bold")
    for column in columns:
        kind, _, name = column.rpartition(":")
        table.add_column(name, justify="right" if kind == "n" else "left", header_style="dim", no_wrap=bool(kind))
    return table


def steps_table(run: Mapping[str, Any], width: int = UNBROKEN) -> Table:
    """Return the steps of a run (content of run.json), as a graph with what became of each.

    The graph gives way where it takes more than a quarter of the width, operators where the terminal is narrow.
    """
    steps, noted = run["steps"], notes_by_step(run)
    drawn = lanes({name: step.get("inputs", ()) for name, step in steps.items()})
    graph = max(map(len, drawn.values()), default=0) * 4 <= width
    table = plain_table(*["1:"] * graph, "1:step", *["1:op"] * (width >= WIDE), "n:in", "n:out", "n:time", "")
    for name, step in steps.items():
        taken = "" if step.get("seconds") is None or step["status"] == "cached" else duration(step["seconds"])
        found = noted.get(name, ()) if step["status"] in MADE else ()
        symbol, style = LOOKS.get("noted" if found else step["status"], ("?", ""))
        label = Text(f"{symbol} {name}", style=style)
        before = [*[Text(drawn[name])] * graph, label, *[Text(step["op"])] * (width >= WIDE)]
        table.add_row(*before, number(step["rows_in"]), number(step["rows_out"]), taken, _remark(step, found))
    return table


def failures(run: Mapping[str, Any]) -> Iterator[Text]:
    """Yield what ended each step that failed, a paragraph each, in full."""
    for name, step in run["steps"].items():
        if step["status"] == "failed":
            yield Text.assemble(("✗ ", "bold red"), (f"{name} ", "bold"), clean(step.get("error") or "failed"))


def notes_by_step(run: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return a run's notes (content of run.json) by step."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for note in run.get("notes", ()):
        found.setdefault(note["step"], []).append(note)
    return found


def notes_text(run: Mapping[str, Any], step: str | None = None) -> Iterator[Text]:
    """Yield the notes of a run, or of one of its steps, a paragraph each; what several arms of a step share is said once."""
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for name, found in notes_by_step(run).items():
        for note in found if step in (None, name) else ():
            alike.setdefault((name.partition("@")[0], note["message"]), []).append(note)
    for (base, message), found in alike.items():
        arms = [note["step"].partition("@")[2] for note in found]
        name = found[0]["step"] if len(found) == 1 else f"{base} in {', '.join(arms)}:"
        yield Text.assemble(("▲ ", "yellow"), (f"{name} ", "bold"), note_text(found[0]) if len(found) == 1 else clean(message))


def _remark(step: Mapping[str, Any], notes: Sequence[Mapping[str, Any]]) -> Text:
    if step.get("error"):
        error = Text(clean(step["error"]), style="red")
        error.truncate(GLANCE, overflow="ellipsis")
        return error
    if step["status"] not in MADE:
        return Text(step["status"], style="dim")
    metrics = step.get("metrics") or {}
    parts = ["cached"] if step["status"] == "cached" else []
    counted = ("dropped", "failed") if step["status"] == "cached" else ("cached", "dropped", "failed")
    parts += [f"{step[name]:,} {name}" for name in counted if step.get(name)]
    parts += [
        f"{short} {number(metrics[name])}" for name, short in HEADLINES.items() if isinstance(metrics.get(name), int | float)
    ]
    text = Text(", ".join(parts[:3]), style="dim")
    return Text(", ").join(filter(None, (Text(counted_notes(notes), style="yellow") if notes else Text(), text)))


def figures(metrics: Mapping[str, Any], title: str = "", width: int = UNBROKEN) -> Iterator[Table]:
    """Yield the tables of an evaluation's metrics.json: rates by set and check, then ratings, harmfulness, choices, the rest.

    Models stand side by side, or one below the other where they are many, or where `width` columns have no room for their
    intervals. Marks of a broken model that none shows are left out.
    """
    models = metrics.get("models") or {}
    cells = {
        (set_name, check): {model: _named(sets.get(set_name)).get(check) for model, sets in models.items()}
        for set_name, check in dict.fromkeys(
            (s, c) for sets in models.values() for s, checks in sets.items() for c in _named(checks)
        )
    }
    met = {
        (set_name, check): values
        for (set_name, check), values in cells.items()
        if check not in MARKS or any(_above_zero(value) for value in values.values())
    }
    told = _named(metrics.get("arms"))
    compared = {
        place: {
            name: _compared([values.get(arm) for arm in named], _named(_named(told.get(name)).get(place[0])).get(place[1]))
            for name, named in arms_of(models).items()
        }
        for place, values in met.items()
    }
    abreast = list(_side_by_side(met, compared, list(models), title)) if len(models) <= MANY else []
    fit = abreast and _table_width(abreast[0]) <= width
    yield from abreast if fit else _one_below_the_other(met, compared, list(models), title, width)
    yield from _other_groups(metrics, list(models), title, width)


def _side_by_side(cells: _Cells, compared: _Compared, models: Sequence[str], title: str) -> Iterator[Table]:
    if cells:
        table = plain_table("1:set", "1:check", *(f"n:{name}" for name in (*models, *arms_of(models))), title=title)
        for place, values in cells.items():
            rates = (figure(values.get(model)) for model in models)
            table.add_row(f"{place[0]}{_answers([values])}", place[1], *rates, *compared[place].values())
        yield table


def _one_below_the_other(cells: _Cells, compared: _Compared, models: Sequence[str], title: str, width: int) -> Iterator[Table]:
    for set_name in dict.fromkeys(place[0] for place in cells):
        checks = {place[1]: values for place, values in cells.items() if place[0] == set_name}
        shown = {
            check: [*(Text(figure(values.get(model))) for model in models), *compared[set_name, check].values()]
            for check, values in checks.items()
        }
        labels = [*map(Text, models), *(Text(name, style="dim") for name in arms_of(models))]
        yield from _fitting("model", labels, shown, f"{title}: {set_name}{_answers(checks.values())}", width)


def _fitting(
    head: str, labels: Sequence[Text], columns: Mapping[str, Sequence[Text]], title: str, width: int
) -> Iterator[Table]:
    """Yield tables that have the columns between them, each with as many as have room beside the labels, and one at least."""
    room = width - max((label.cell_len for label in labels), default=0) - 2
    part: dict[str, Sequence[Text]] = {}
    taken = 0
    for name, column in columns.items():
        wanted = max(Text(name).cell_len, *(cell.cell_len for cell in column)) + 2
        if part and (taken + wanted > room or len(part) == ABREAST):
            yield _table(head, labels, part, title)
            part, taken = {}, 0
        part[name] = column
        taken += wanted
    if part:
        yield _table(head, labels, part, title)


def _table(head: str, labels: Sequence[Text], columns: Mapping[str, Sequence[Text]], title: str) -> Table:
    table = plain_table(f"1:{head}", *(f"n:{name}" for name in columns), title=title)
    for place, label in enumerate(labels):
        table.add_row(label, *(column[place] for column in columns.values()))
    return table


def _table_width(table: Table) -> int:
    """Return the columns of a terminal that a table takes where nothing of it is cut."""
    cells = ([column.header, *column.cells] for column in table.columns)
    return sum(max(Text(str(cell)).cell_len for cell in column) + 2 for column in cells)


def _answers(cells: Iterable[Mapping[str, Any]]) -> str:
    """Return how many prompts or answers are behind figures: ` (56)`, or fewest to most; nothing where they tell none."""
    found = {value["n"] for values in cells for value in values.values() if isinstance(value, Mapping) and value.get("n")}
    return f" ({' to '.join(str(n) for n in sorted({min(found), max(found)}))})" if found else ""


def _compared(values: Sequence[Any], told: Any) -> Text:
    """Say of arms what the difference of the two furthest apart tells (`told`): that they differ, or how far they may at most.

    Where their prompts weren't compared one by one, intervals that are apart say so, and others nothing.
    """
    if told:
        if told["low"] > 0 or told["high"] < 0:
            return Text("differ", style="bold")
        return Text(f"alike ±{100 * told['unseen']:.0f}", style="dim")
    known = [value for value in map(_named, values) if value.get("low") is not None and value.get("high") is not None]
    intervals = [(float(value["low"]), float(value["high"])) for value in known]
    apart = len(intervals) == len(values) and max(low for low, _ in intervals) > min(high for _, high in intervals)
    return Text("differ" if apart else "", style="bold")


def in_words(told: Mapping[str, Any]) -> str:
    """Say what the difference of the two arms that are furthest apart tells."""
    if told["low"] > 0 or told["high"] < 0:
        low, high = sorted((abs(told["low"]), abs(told["high"])))
        more = "more" if told["mean"] > 0 else "less"
        return f"{told['to']} is {100 * low:.0f} to {100 * high:.0f} points {more} than {told['from']}, prompt by prompt"
    return f"no difference shows on {told['n']:,} prompts; up to {100 * told['unseen']:.0f} points aren't ruled out"


def _other_groups(metrics: Mapping[str, Any], models: Sequence[str], title: str, width: int) -> Iterator[Table]:
    by_model: dict[str, Mapping[str, Any]] = {
        "ratings (Elo)": {name: _named(found.get("ratings")) for name, found in _named(metrics.get("comparisons")).items()},
        "harmfulness (0 to 4)": _turned(_named(metrics.get("harmfulness"))),
        "choices": _named(metrics.get("choices")),
        "perplexity": _named(metrics.get("perplexity")),
    }
    for group, rows in by_model.items():
        if rows:
            columns = {model: [Text(figure(values.get(model))) for values in rows.values()] for model in models}
            yield from _fitting("", list(map(Text, rows)), columns, f"{title}: {group}", width)
    for name, values in metrics.items():
        if (
            name not in ("models", "comparisons", "harmfulness", "choices", "perplexity", "frontier", "arms")
            and isinstance(values, Mapping)
            and values
        ):
            yield _leaves(values, f"{title}: {name}")


def _turned(values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return values[a][b] as values[b][a]."""
    turned: dict[str, dict[str, Any]] = {}
    for outer, inner in values.items():
        for name, value in inner.items():
            turned.setdefault(name, {})[outer] = value
    return turned


def _named(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _above_zero(value: Any) -> bool:
    number = next((value[name] for name in CENTRES if name in value), None) if isinstance(value, Mapping) else value
    return isinstance(number, int | float) and number > 0


def figure(value: Any) -> str:
    """Return `97% [91, 99]` for a rate with its interval, `3.50 [3.20, 3.80]` for another figure, else the plain number."""
    if not isinstance(value, Mapping):
        return number(value)
    centre = next((name for name in CENTRES if name in value), None)
    if centre is None:
        return ", ".join(f"{name} {number(inner)}" for name, inner in value.items() if isinstance(inner, int | float))
    if value[centre] is None:
        return "-"
    scale, unit = (100, "%") if centre == "rate" else (1, "")
    digits = 2 if centre in ("mean", "perplexity", "value") else int(centre == "rate" and (value.get("n") or 0) >= PRECISE)
    middle, low, high = (None if value.get(name) is None else value[name] * scale for name in (centre, "low", "high"))
    around = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{middle:.{digits}f}{unit}{around}"


def _leaves(values: Mapping[str, Any], title: str, limit: int = 24) -> Table:
    table = plain_table("figure", "n:value", title=title)
    found = [(path, figure(value)) for path, value in leaves(values) if not isinstance(value, list)]
    for path, value in found[:limit]:
        table.add_row(path, value)
    if len(found) > limit:
        table.add_row(f"... {len(found) - limit} more in metrics.json", "")
    return table


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values; a figure with its interval is one value, also where nothing was measured."""
    for name, value in values.items():
        if isinstance(value, Mapping) and not any(_is_figure(value, centre) for centre in CENTRES):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_figure(value: Mapping[str, Any], centre: str) -> bool:
    """Return whether a mapping has a number at its centre, or says on how many trials it has none.

    `value` is what kappa and the like have there, and others may name anything so: their interval is what tells them.
    """
    if centre == "value" and not {"low", "high"} <= value.keys():
        return False
    return isinstance(value.get(centre), int | float) or (centre in value and value[centre] is None and "n" in value)


def central(value: Any) -> float | int | None:
    """Return the number at the centre of a figure, or that it is; None of anything else, and where nothing was measured."""
    if isinstance(value, Mapping):
        value = next((value[name] for name in CENTRES if name in value), None)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def by_principle(metrics: Mapping[str, Any]) -> Table | None:
    """Return the table of what each principle did in a step; None where its figures don't say."""
    found = metrics.get("by_principle") or {}
    columns = dict.fromkeys(name for one in found.values() for name in one)
    table = plain_table("1:principle", *(f"n:{name.replace('_', ' ')}" for name in columns), title="what each principle did")
    for name, one in found.items():
        table.add_row(name, *(figure(one.get(column)) if column in one else "-" for column in columns))
    return table if found else None


def card_table(card: Mapping[str, Any]) -> Table:
    """Return what there is to know of a trained model, its loss curve in one line of blocks."""
    table = plain_table("model", "")
    for name in ("path", "architecture", "adapter_of", "dtype"):
        if card[name]:
            table.add_row(name, Text(str(card[name])))
    table.add_row("weights", f"{card['size_bytes'] / 1e6:,.1f} MB")
    for name, value in leaves(card["metrics"]):
        if not isinstance(value, list):
            table.add_row(name, figure(value))
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


def number(value: Any) -> str:
    """Return a number in few characters, or the value as text; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"
