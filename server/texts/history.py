"""The trials of a session as text: a line per trial, or one trial with its curve and its configuration."""

from typing import Any

from ...tools.views import ReflectionRow, SettingRow, TrajectoryView, TrialRow, TrialView
from .figures import change, cut, ndcg, seconds, settings, value
from .observation import measured_lines

CHANGES_LENGTH = 150
LESSON_LENGTH = 220
TRIAL_LENGTH = 1500
POINTS = 10  # of a learning curve
SWEPT = "settings, best first"


def trajectory_text(view: TrajectoryView) -> str:
    """One line per trial, and below it its reflection."""
    reflections = {reflection.trial: reflection for reflection in view.reflections}
    lines = [f"{view.session}: trial, changes over base: validation NDCG@10, difference to the base, verdict"]
    for row in view.trials:
        lines.append(_row(row))
        if row.trial in reflections:
            lines.append(f"  {_reflection(reflections[row.trial])}")
    return "\n".join(lines if view.trials else [*lines, "no trials yet"])


def trial_text(view: TrialView) -> str:
    """One trial in at most TRIAL_LENGTH bytes."""
    lines = [
        f"{view.trial} {view.status}: {cut(settings(view.changes), CHANGES_LENGTH)} over {view.base}",
        *measured_lines(view),
        *_asked(view),
    ]
    if view.shares:
        shares = ", ".join(f"{one.knob} {change(one.delta, one.se)}" for one in view.shares)
        lines.append(cut(f"shares of the knobs in the difference to the base: {shares}", LESSON_LENGTH))
    if view.curve_epochs:
        lines.append(_curve(view.curve_epochs))
    room = TRIAL_LENGTH - len("\n".join(lines).encode()) - 2
    lines += _swept(view.swept, room)
    return "\n".join(lines)


def _row(row: TrialRow) -> str:
    text = f"{row.trial} {cut(settings(row.changes), CHANGES_LENGTH)} over {row.base}: "
    if row.stopped and row.stopped.at_most is not None:
        return f"{text}stopped at epoch {row.stopped.epoch}, at most {ndcg(row.stopped.at_most)}"
    if row.status != "finished":
        return text + row.status + (f": {cut(row.reason, LESSON_LENGTH)}" if row.reason else "")
    delta = f", {change(row.base_delta, row.base_delta_se)}" if row.base_delta is not None else ""
    swept = f", best of {len(row.swept)} swept" if row.swept else ""
    return (
        f"{text}{ndcg(row.metrics['ndcg@10'])}{delta}, {row.verdict}{swept}, {seconds(row.train_seconds)}"
        + ("" if row.reflected else "; no reflection")
    )


def _reflection(reflection: ReflectionRow) -> str:
    check = "" if reflection.check == "supported" else f", {reflection.check}"
    return f"helped {reflection.helped}, {reflection.dimension}{check}: {cut(reflection.lesson, LESSON_LENGTH)}"


def _asked(view: TrialView) -> list[str]:
    asked = view.asked
    lines = []
    if asked.reason:
        lines.append(f"reason given: {cut(asked.reason, LESSON_LENGTH)}")
    if asked.override_reason:
        lines.append(f"override: {cut(asked.override_reason, LESSON_LENGTH)}")
    return lines


def _curve(epochs: list[dict[str, Any]]) -> str:
    """Loss and NDCG@10 at up to POINTS epochs, evenly spread, first and last included; and the cost of an epoch."""
    last = len(epochs) - 1
    chosen = sorted({round(step * last / (POINTS - 1)) for step in range(POINTS)}) if last else [0]
    points = [
        f"{epoch['epoch']}: {epoch['loss']:.4g} {'' if epoch.get('ndcg10') is None else ndcg(epoch['ndcg10'])}".rstrip()
        for epoch in (epochs[position] for position in chosen)
    ]
    train = sum(epoch["train_seconds"] for epoch in epochs) / len(epochs)
    evaluate = sum(epoch.get("evaluate_seconds") or 0.0 for epoch in epochs) / len(epochs)
    cost = f"{value(float(f'{train:.2g}'))} s training and {value(float(f'{evaluate:.2g}'))} s evaluation per epoch"
    return f"epoch: loss, NDCG@10 without priors: {', '.join(points)}; {cost}"


def _swept(rows: list[SettingRow], room: int) -> list[str]:
    lines: list[str] = []
    room -= len(SWEPT) + 6  # the counts
    for row in sorted(rows, key=lambda one: -one.ndcg):
        line = f"  {ndcg(row.ndcg)} {change(row.delta, row.se)} {settings(row.settings)}"
        room -= len(line.encode()) + 1
        if room < 0:
            break
        lines.append(line)
    return [f"{SWEPT} ({len(lines)} of {len(rows)}):", *lines] if lines else []
