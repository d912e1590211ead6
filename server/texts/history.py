"""The trials of a session as text: a line per trial, or one trial with its curve and its configuration."""

from typing import Any

from ...data.wording import counted
from ...tools.views import ReflectionRow, SettingRow, TrajectoryView, TrialRow, TrialView
from .figures import change, cut, fitting, ndcg, seconds, settings, size, value, within
from .observation import measured_lines, running_text

LENGTH = 12_000  # bytes of a trajectory
LESSONS_LENGTH = 2000  # bytes of its reflections, however many trials there are
ROWS = 150
CHANGES_LENGTH = 150
LESSON_LENGTH = 220
SETTINGS_LENGTH = 150
NEXT_LENGTH = 160
TRIAL_LENGTH = 1500
POINTS = 8  # of a learning curve
SWEPT = "settings, best first"


def trajectory_text(view: TrajectoryView) -> str:
    """One line per trial, of the latest ROWS trials; below it its reflection, of the latest as far as there is room."""
    rows = {row.trial: _row(row) for row in view.trials[-ROWS:]}
    said = _latest(view.reflections, max(LENGTH - sum(size(row) + 1 for row in rows.values()), LESSONS_LENGTH))
    lines = [f"{view.session}: trial, changes over base: validation NDCG@10, difference to the base, verdict"]
    if view.query:
        count = counted(view.trials_in_all, "trial")
        lines.append(f"{len(view.trials)} of {count}: those that {view.query!r:.60} names")
    earlier = len(view.trials) - len(rows)
    lines += [f"{earlier} earlier trials: the best are in view='state', each one in view='trial'"] if earlier else []
    unsaid = len(view.reflections) - len(said)
    lines += [f"reflections of the latest {len(said)} trials that have one; others in view='trial'"] if unsaid else []
    for trial, row in rows.items():
        lines += [row, *([said[trial]] if trial in said else [])]
    return "\n".join(lines if view.trials or view.query else [*lines, "no trials yet"])


def _latest(reflections: list[ReflectionRow], room: int) -> dict[str, str]:
    """The latest reflections that fit into `room` bytes, as lines by trial."""
    lines: dict[str, str] = {}
    for reflection in reversed(reflections):
        line = f"  {_reflection(reflection)}"
        room -= size(line) + 1
        if room < 0:
            break
        lines[reflection.trial] = line
    return lines


def trial_text(view: TrialView) -> str:
    """One trial in at most TRIAL_LENGTH bytes; a sweep has its settings as far as there is room."""
    if view.status == "running":
        return running_text(view)
    last = [cut(f"next: {view.next}", NEXT_LENGTH)]
    lines = [_heading(view), *measured_lines(view), *([_curve(view.curve_epochs)] if view.curve_epochs else [])]
    lines += [*_shares(view), *_asked(view)]
    room = TRIAL_LENGTH - sum(size(line) + 1 for line in [*lines, *last])
    return within(TRIAL_LENGTH, [*lines, *_swept(view.swept, room)], last)


def _heading(view: TrialView) -> str:
    text = f"{view.trial} {view.status}: {cut(settings(view.changes), CHANGES_LENGTH)} over {view.base}"
    if view.settings == view.changes:
        return text
    return f"{text}; with it, other than the default: {cut(settings(view.settings), SETTINGS_LENGTH)}"


def _shares(view: TrialView) -> list[str]:
    """The part of each knob in the difference; of one knob it is the whole, which is said already."""
    if len(view.shares) < 2:
        return []
    shares = ", ".join(f"{one.knob} {change(one.delta, one.se)}" for one in view.shares)
    return [cut(f"shares of the knobs in the difference to the base: {shares}", LESSON_LENGTH)]


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
    ranked = sorted(rows, key=lambda one: -one.ndcg)
    every = [f"  {ndcg(row.ndcg)} {change(row.delta, row.se)} {settings(row.settings)}" for row in ranked]
    lines = fitting(every, room - len(SWEPT) - 6)  # the heading and its counts
    return [f"{SWEPT} ({len(lines)} of {len(rows)}):", *lines] if lines else []
