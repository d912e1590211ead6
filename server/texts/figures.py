"""Numbers and settings in the fewest characters that an agent needs: .0765, +.0012 ± .0008 (z +1.5), lr=0.001."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...tools.results import Budget

SMALLEST = 0.00005  # what is smaller would be .0000
MIN_LINE = 40  # bytes of a line that is cut; shorter ones say too little


def ndcg(value: float) -> str:
    """A metric between 0 and 1 with four decimals and no leading zero; smaller values have one significant digit."""
    return _decimals(value, "").removeprefix("0")


def signed(value: float) -> str:
    """A difference of a metric, with its sign."""
    return _decimals(value, "+").replace("+0.", "+.").replace("-0.", "-.")


def _decimals(value: float, sign: str) -> str:
    return f"{value:{sign}.0e}" if 0 < abs(value) < SMALLEST else f"{value:{sign}.4f}"


def change(delta: float, se: float | None = None, z: float | None = None) -> str:
    """A difference with its standard error and its z-score, as far as they are known."""
    text = signed(delta)
    if se is not None:
        text += f" ± {ndcg(se)}"
    return text if z is None else f"{text} (z {z:+.1f})"


def value(given: Any) -> str:
    """The value of a knob as JSON has it, numbers without a needless fraction."""
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, float):
        return f"{given:.6g}"
    return "none" if given == "" else str(given)  # only names of trials can be empty


def settings(values: Mapping[str, Any]) -> str:
    """Knobs with their values; "the default" without any."""
    return " ".join(f"{knob}={value(given)}" for knob, given in values.items()) or "the default"


def seconds(amount: float) -> str:
    """A duration: seconds below two minutes, then minutes, then hours."""
    if amount < 120:
        return f"{amount:.3g} s"
    return f"{amount / 60:.0f} min" if amount < 7200 else f"{amount / 3600:.1f} h"


def budget(left: Budget) -> str:
    """What of the budget is used."""
    text = (
        f"budget used: {left.trials_used}/{left.trials_max} trials, "
        f"{seconds(left.train_seconds_used)} of {seconds(left.train_seconds_max)} training"
    )
    return text if left.llm_usd_max is None else f"{text}, ${left.llm_usd_used:.2f} of ${left.llm_usd_max:.2f}"


def size(text: str) -> int:
    """The bytes of a text; the budgets are in bytes, which a client counts and which follow its tokens."""
    return len(text.encode())


def cut(text: str, length: int) -> str:
    """The text in at most `length` bytes; a quotation that is cut keeps its closing mark."""
    if size(text) <= length:
        return text
    kept = text.encode()[: length - size("…”")].decode(errors="ignore").rstrip()
    return f"{kept}…”" if kept.count("“") > kept.count("”") else f"{kept}…"


def fitting(lines: Sequence[str], room: int) -> list[str]:
    """The first lines that fit into `room` bytes, each with its end."""
    kept = []
    for line in lines:
        room -= size(line) + 1
        if room < 0:
            break
        kept.append(line)
    return kept


def within(length: int, lines: Sequence[str], last: Sequence[str]) -> str:
    """The lines, and after them the last ones, in at most `length` bytes.

    The last ones are whole. Of the lines, the first that does not fit is cut, and those after it are left out.
    """
    room = length - sum(size(line) + 1 for line in last)
    kept = []
    for line in lines:
        if size(line) + 1 > room:
            kept += [cut(line, room - 1)] if room > MIN_LINE else []
            break
        kept.append(line)
        room -= size(line) + 1
    return "\n".join([*kept, *last])
