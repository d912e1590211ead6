"""The action space as text: a line per knob, grouped by dimension; with a query, also what each knob does."""

from collections.abc import Iterable
from itertools import groupby

from ...tools.views import ActionSpaceView, KnobRow
from .figures import value

LEGEND = "knob: range or choices = default (×: search by factors)"


def knob_lines(rows: Iterable[KnobRow]) -> list[str]:
    """The knobs by dimension: one short entry each, a line per dimension."""
    return [
        f"{dimension}: " + "; ".join(map(knob_entry, knobs))
        for dimension, knobs in groupby(rows, key=lambda row: row.dimension)
    ]


def knob_entry(row: KnobRow) -> str:
    """One knob: its name, its values, its default."""
    return f"{row.knob} {_values(row)} = {value(row.default)}"


def action_space_text(view: ActionSpaceView) -> str:
    """view='action_space'."""
    if not any(row.does for row in view.knobs):
        hint = "What a knob does: read_memory(view='action_space', query='lr dropout')."
        return "\n".join([f"{len(view.knobs)} knobs of {view.backbone}. {LEGEND}.", *knob_lines(view.knobs), hint])
    more = [f"{view.more} more descriptions match; name the knobs or a dimension."] if view.more else []
    return "\n".join([*map(_explained, view.knobs), *more])


def _explained(row: KnobRow) -> str:
    details = {
        "": row.does, "helps: ": row.helps, "cost: ": row.cost, "rounded to ": row.rounded_to, "note: ": row.note,
        "no effect: ": row.inert,
    }  # fmt: skip
    parts = [row.dimension, *(f"{name}{text}" for name, text in details.items() if text)]
    return f"{knob_entry(row)}\n  {'; '.join(parts)}"


def _values(row: KnobRow) -> str:
    if row.levels:
        return "|".join(map(value, row.levels))
    if row.choices:
        return "|".join(map(value, row.choices))
    if row.low is None or row.high is None:
        return "[trials]"
    return f"{value(row.low)}..{value(row.high)}{'×' if row.scale == 'log' else ''}"
