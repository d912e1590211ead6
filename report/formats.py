"""Formatting of numbers. No other module formats them, so that terminal, report and README agree."""

from collections.abc import Mapping
from typing import Any

from ..data.wording import counted
from ..memory.records import TrialRecord

MISSING = "–"
METRICS = ("ndcg@10", "ndcg@5", "recall@10", "recall@5", "mrr")
"""Metrics in display order; the first decides keep or discard."""

METRIC_TITLES = {
    "ndcg@10": "NDCG@10",
    "ndcg@5": "NDCG@5",
    "recall@10": "Recall@10",
    "recall@5": "Recall@5",
    "mrr": "MRR",
}


def metric(value: float | None) -> str:
    """Four decimals; metrics are between 0 and 1."""
    return MISSING if value is None else f"{value:.4f}"


def at_most(bound: float | None) -> str:
    """`≤ 0.0612`: the upper bound of a metric."""
    return MISSING if bound is None else f"≤ {bound:.4f}"


def signed(value: float | None) -> str:
    """Four decimals with an explicit sign; a value that rounds to zero is `+0.0000`."""
    return MISSING if value is None else f"{round(value, 4) + 0.0:+.4f}"


def with_error(value: float | None, error: float | None) -> str:
    """`0.0612 ± 0.0011`: a metric and its standard error over users."""
    return metric(value) if error is None else f"{metric(value)} ± {metric(error)}"


def change(delta: float | None, error: float | None = None, z: float | None = None) -> str:
    """`+0.0031 ± 0.0012 (z +2.6)`: a paired difference, its standard error and their ratio."""
    text = signed(delta)
    if delta is not None and error is not None:
        text += f" ± {metric(error)}"
    if delta is None or z is None:
        return text
    if abs(z) < 1000:
        return f"{text} (z {z:+.1f})"
    return f"{text} (z > 999)" if z > 0 else f"{text} (z < -999)"  # a standard error near 0


def sign(delta: float, error: float) -> int:
    """1 or -1 if a difference is at least one standard error from 0, otherwise 0."""
    return 0 if abs(delta) < error else 1 if delta > 0 else -1


def relative(before: float | None, after: float | None) -> str:
    """`+12.3 %`: the relative change from `before` to `after`."""
    return MISSING if not before or after is None else f"{100 * (after / before - 1):+.1f} %"


def duration(seconds: float | None) -> str:
    """`8.4 s`, `3 min 20 s` or `1 h 02 min`."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(time: str | None) -> str:
    """`2026-01-02 03:04 UTC` from an ISO 8601 time in UTC, as all records have it."""
    return f"{time[:10]} {time[11:16]} UTC" if time else MISSING


def count(number: int | None) -> str:
    """`1,234,567`; a dash for None or 0."""
    return MISSING if not number else f"{number:,}"


def value(knob_value: Any) -> str:
    """A knob's value as in JSON, without quotes: `true`, `0.001`, `both`; "none" for an empty list of trials."""
    if isinstance(knob_value, bool):
        return "true" if knob_value else "false"
    if knob_value == "":  # only names of trials can be empty
        return "none"
    return f"{knob_value:g}" if isinstance(knob_value, float) else str(knob_value)


def settings(knobs: Mapping[str, Any], empty: str = "default", separator: str = ", ") -> str:
    """`hidden_dim=128, lr=0.001`, or `empty` if there are no knobs."""
    return separator.join(f"{knob}={value(chosen)}" for knob, chosen in knobs.items()) or empty


def origin(trial: TrialRecord) -> str:
    """How a trial was measured, if not by a run of its own to the end.

    `best of 24 settings`, `reused from demo-sasrec-1/t004`, `stopped after epoch 3 of 20`.
    """
    details = trial.outcome.details if trial.outcome else {}
    if trial.status == "stopped":
        return f"stopped after epoch {details['stopped']['epoch']} of {trial.config['epochs']}"
    if trial.sweep:
        best = "best of " if "sweep" in details else "sweep of "
        return best + counted(len(trial.settings), "setting")
    return f"reused from {details['reused_from']}" if "reused_from" in details else ""


def plain(entry: Any) -> str:
    """A value of a profile or a summary on one line; floats with four significant digits or thousands separators."""
    if isinstance(entry, float):
        return f"{entry:,.0f}" if abs(entry) >= 10_000 else f"{entry:.4g}"
    if isinstance(entry, int) and not isinstance(entry, bool):
        return f"{entry:,}"
    if isinstance(entry, Mapping):
        return ", ".join(f"{name} {plain(element)}" for name, element in entry.items())
    if isinstance(entry, (list, tuple)):
        return ", ".join(plain(element) for element in entry)
    return value(entry)
