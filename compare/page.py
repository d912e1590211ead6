"""The protocol page of a comparison: another page with its budgets replaced, and knobs narrowed where a person asks."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..data.errors import ConfigError
from ..sandbox.page import ABSENT, BACKBONE_COLUMNS, RANGE_COLUMN
from ..sandbox.protocol import parse_protocol

NO_LIMIT = 10_000_000
"""Training seconds of a session that only its number of trials ends."""

Cells = dict[str, str]


def budgeted(text: str, trials: int, seconds: float | None, settings: Sequence[str] = ()) -> str:
    """`text`, a protocol page, under which a session ends after `trials` trials or `seconds` training seconds only.

    Patience does not end a session before its budget, so that all arms get the same one. settings: further ends of
    ranges or defaults, such as "epochs.high=3" or "lr.default=0.001". Raises ConfigError for a setting that does not
    fit the page, ProtocolError if the resulting page is invalid.
    """
    rules = {"max_trials": str(trials), "max_train_seconds": f"{seconds or NO_LIMIT:g}", "patience": str(trials)}
    for rule, value in rules.items():
        text = _with_cells(text, "rule", rule, _constant({"value": value}))
    for setting in settings:
        knob, key, value = _parsed(setting)
        text = _with_cells(text, "knob", knob, partial(_narrowed, key=key, value=value))
    parse_protocol(text, "the protocol of the comparison")
    return text


def with_rules(text: str, rules: Mapping[str, str]) -> str:
    """`text`, a protocol page, with these values of rules; a rule that it lacks is added to its table of rules.

    Raises ProtocolError if the resulting page is invalid.
    """
    for rule, value in rules.items():
        try:
            text = _with_cells(text, "rule", rule, _constant({"value": value}))
        except ConfigError:
            text = _with_row(text, rule, value)
    parse_protocol(text, "the protocol of the comparison")
    return text


def _with_row(text: str, rule: str, value: str) -> str:
    """The page with a further rule at the top of its table of rules."""
    lines = text.split("\n")
    top = next(n for n, line in enumerate(lines) if line.startswith("|") and line.strip("| ").startswith("rule"))
    columns = [cell.strip() for cell in lines[top].strip("| ").split("|")]
    cells = {"rule": f"`{rule}`", "value": value}
    row = f"| {' | '.join(cells.get(column, '') for column in columns)} |"
    return "\n".join([*lines[: top + 2], row, *lines[top + 2 :]])


def _constant(cells: Cells) -> Callable[[Mapping[str, str]], Cells]:
    return lambda _: cells


def _parsed(setting: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"(\w+)\.(low|high|default)=(\S+)", setting)
    if not found:
        raise ConfigError(f"setting {setting!r} is not KNOB.low=, KNOB.high= or KNOB.default=VALUE, e.g. epochs.high=3")
    return found[1], found[2], found[3]


def _narrowed(cells: Mapping[str, str], key: str, value: str) -> Cells:
    """The cells of a knob's row that change if its low, high or default (`key`) becomes `value`."""
    if key == "default":
        return {column: value for column in BACKBONE_COLUMNS.values() if cells.get(column, ABSENT) != ABSENT}
    ends = re.split(r"( … )", cells[RANGE_COLUMN])
    if len(ends) != 3:
        raise ConfigError(f"the range {cells[RANGE_COLUMN]!r} has no {key}; only a range LOW … HIGH has")
    low, separator, high = ends
    scale = ", log" if high.endswith(", log") else ""
    new = {"low": low, "high": high.removesuffix(scale), key: value}
    return {RANGE_COLUMN: f"{new['low']}{separator}{new['high']}{scale}"}


def _with_cells(text: str, table: str, name: str, changed: Callable[[Mapping[str, str]], Cells]) -> str:
    """The page with the cells that `changed` returns replaced in the row `name` of a table whose first column is
    `table`.

    A rule and a knob may have the same name (patience).
    """
    lines = text.split("\n")
    header: list[str] = []
    for number, line in enumerate(lines):
        if not line.startswith("|"):
            header = []
            continue
        row = [cell.strip() for cell in line.strip("| ").split("|")]
        header = header or row
        if header[0] == table and row[0].strip("`") == name:
            cells = dict(zip(header, row, strict=False))
            lines[number] = f"| {' | '.join((cells | changed(cells)).values())} |"
            return "\n".join(lines)
    raise ConfigError(f"the protocol has no {table} {name!r}; add its row, or leave the option out")
