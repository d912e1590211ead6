"""A session's trajectory and one of its trials as Markdown pages, for clients that show resources to people.

They are made of the views that agents read, in which texts are quoted, unverified figures masked and test figures
withheld; nothing else is read here. Texts of agents are escaped, so that they cannot become markup.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..tools.views import NDCG10, ReflectionRow, TrajectoryView, TrialRow, TrialView

MARKUP = re.compile(r"([\\`*_\[\]|~#])")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
NONE = "–"


def trajectory_page(view: TrajectoryView) -> str:
    """Every trial in a table, then the reasons and the reflections."""
    rows = [_trial_cells(trial) for trial in view.trials]
    headings = ("trial", "base", "changes", "NDCG@10", "Δ to the incumbent", "verdict")
    parts = [f"# Trajectory of {view.session}", _table(headings, rows) if rows else "No trial has been run."]
    reasons = [f"- {trial.trial}: {escaped(_reason(trial))}" for trial in view.trials if _reason(trial)]
    if reasons:
        parts += ["## Why", "\n".join(reasons)]
    if view.reflections:
        parts += ["## Reflections", "\n".join(map(_reflection_line, view.reflections))]
    return "\n\n".join(parts) + "\n"


def trial_page(view: TrialView) -> str:
    """One trial: its changes, figures, verdict and learning curve."""
    facts = [
        ("status", view.status),
        ("base", view.base),
        ("changes", settings_text(view.changes)),
        ("validation NDCG@10", _with_error(view.metrics.get(NDCG10), view.ndcg10_se)),
        ("Δ to the incumbent", _delta(view.delta)),
        ("Δ to the base", _delta(view.base_delta)),
        ("verdict", view.verdict or ""),
        ("reason", escaped(view.reason)),
        ("hypothesis", escaped(view.asked.reason or "")),
        ("parameters", f"{view.parameters:,}" if view.parameters else ""),
        ("training seconds", f"{view.train_seconds:.1f}" if view.train_seconds else ""),
    ]
    lines = [f"- {name}: {value}" for name, value in facts if value not in ("", NONE)]
    parts = [f"# Trial {view.trial} of {view.session}", "\n".join(lines)]
    if view.curve_epochs:
        rows = [(str(e["epoch"]), _figure(e.get("loss")), _figure(e.get("ndcg10"))) for e in view.curve_epochs]
        parts += ["## Learning curve", _table(("epoch", "loss", "validation NDCG@10 without score priors"), rows)]
    return "\n\n".join(parts) + "\n"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Knobs and their values as code; `default` for none."""
    return ", ".join(f"`{knob}={_value(value)}`" for knob, value in settings.items()) or "default"


def escaped(text: str) -> str:
    """A text on one line, without effect as Markdown or HTML."""
    line = "".join(ENTITIES.get(character, character) for character in " ".join(text.split()))
    return MARKUP.sub(r"\\\1", line)


def _trial_cells(trial: TrialRow) -> Sequence[str]:
    delta = None if trial.delta is None else {"delta": trial.delta, "se": trial.delta_se}
    scored = _with_error(trial.metrics.get(NDCG10), trial.ndcg10_se)
    verdict = trial.verdict or trial.status
    return trial.trial, trial.base, settings_text(trial.changes), scored, _delta(delta), verdict


def _reason(trial: TrialRow) -> str:
    return ". ".join(text.rstrip(".") for text in (trial.reason, trial.cause) if text)


def _reflection_line(row: ReflectionRow) -> str:
    return f"- {row.trial}: helped {row.helped}, {row.dimension} ({row.check}). {escaped(row.lesson)}"


def _with_error(value: float | None, error: float | None) -> str:
    return NONE if value is None else _figure(value) + (f" ± {_figure(error)}" if error is not None else "")


def _delta(found: Mapping[str, float | None] | None) -> str:
    if not found or found.get("delta") is None:
        return NONE
    error = found.get("se")
    return f"{found['delta']:+.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _figure(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) or "none"  # no names of trials


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
