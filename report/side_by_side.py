"""Several sessions side by side: what they were, what they cost and reached, and where their selections differ.

Not covered: statistics over repeated sessions of an agent; that is `virtualmle compare`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..data.errors import SessionError, TrialError
from ..sandbox.program import trials_used
from ..sandbox.statistics import Comparison, compare
from ..tools.signatures import recorded_ranks
from ..tools.workspace import trial_directory
from . import formats
from .baselines import strongest
from .gather import ReportData, gather, ndcg

MOST = 6


@dataclass(frozen=True)
class Row:
    """One fact of every session, in their order."""

    title: str
    cells: list[str]

    @property
    def differs(self) -> bool:
        """Whether the sessions differ in it."""
        return len(set(self.cells)) > 1


@dataclass(frozen=True)
class SideBySide:
    """The sessions, and what is shown of them."""

    home: Path
    sessions: list[ReportData]

    @property
    def facts(self) -> list[Row]:
        """What the sessions were, what they cost, and what they reached."""
        return [Row(title, [cell(data) for data in self.sessions]) for title, cell in FACTS.items()] + self._levels()

    @property
    def settings(self) -> list[Row]:
        """The knobs in which the selected configurations differ."""
        configs = [data.selected.config if data.selected else {} for data in self.sessions]
        knobs = dict.fromkeys(knob for config in configs for knob in config if knob != "backbone")
        rows = [Row(knob, [_setting(config, knob) for config in configs]) for knob in knobs]
        return [row for row in rows if row.differs]

    @property
    def notes(self) -> list[str]:
        """What limits the comparison, and the paired differences of the selected models."""
        notes = []
        if len({data.session.dataset_id for data in self.sessions}) > 1:
            notes.append("The sessions used different data: their figures are not comparable, only their gains are.")
        if len({data.session.protocol_hash for data in self.sessions}) > 1:
            notes.append("The sessions had different protocols (SANDBOX.md), so their budgets or knobs may differ.")
        return [*notes, *self._differences()]

    def _levels(self) -> list[Row]:
        """How soon each session reached the best validation NDCG@10 of the one that ended lowest; same data only."""
        finals = [value for data in self.sessions if data.selected and (value := ndcg(data.selected)) is not None]
        if len(finals) < len(self.sessions) or len({data.session.dataset_id for data in self.sessions}) > 1:
            return []
        title = f"reached {formats.metric(min(finals))} at"
        return [Row(title, [_reached(data, min(finals)) for data in self.sessions])]

    def _differences(self) -> list[str]:
        """The paired difference of every other selected model to that of the first session, where both have ranks."""
        first, *others = self.sessions
        found = [(data, self._paired(first, data)) for data in others]
        return [
            f"Selected models on validation, {data.session.id} minus {first.session.id}, paired over users: "
            f"{formats.change(paired.delta, paired.se, paired.z)}."
            for data, paired in found
            if paired is not None
        ]

    def _paired(self, one: ReportData, other: ReportData) -> Comparison | None:
        if one.selected is None or other.selected is None or one.session.dataset_id != other.session.dataset_id:
            return None
        try:
            ranks = [
                recorded_ranks(trial_directory(self.home, data.session.id, data.selected.handle), data.selected)
                for data in (one, other)
                if data.selected
            ]
        except TrialError:  # the files of a trial were deleted, moved or changed
            return None
        return compare(ranks[0], ranks[1])


def side_by_side(home: Path, sessions: Sequence[str], *, reveal: bool = False) -> SideBySide:
    """Read 2 to `MOST` sessions of `home`; `reveal`: with test results that are withheld from agents.

    Raises HomeError without a memory.db, SessionError for an unknown id."""
    if not 2 <= len(sessions) <= MOST:
        raise SessionError(f"2 to {MOST} sessions stand side by side, not {len(sessions)}; give their ids")
    return SideBySide(home, [gather(home, session, reveal=reveal) for session in sessions])


def side_table(compared: SideBySide) -> list[Table | Text]:
    """The sessions as tables for the terminal, and the notes."""
    titles = [data.session.id for data in compared.sessions]
    parts: list[Table | Text] = [_table("", titles, compared.facts)]
    if compared.settings:
        parts.append(_table("knobs that differ", titles, compared.settings))
    return [*parts, *(Text(note) for note in compared.notes)]


def _table(corner: str, titles: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column(corner)
    for title in titles:
        table.add_column(Text(title, overflow="fold"), justify="right", overflow="fold")
    for row in rows:
        table.add_row(Text(row.title), *(Text(cell) for cell in row.cells))
    return table


def _setting(config: dict[str, Any], knob: str) -> str:
    return formats.value(config.get(knob, "")) or formats.MISSING  # a knob of a later version, or one without a value


def _reached(data: ReportData, level: float) -> str:
    """`t006, 3 min 20 s`: the first trial of at least this NDCG@10, and the training seconds up to its end."""
    seconds = 0.0
    for trial in data.trials:
        seconds += trial.outcome.train_seconds if trial.outcome else 0.0
        if trial.status == "finished" and (ndcg(trial) or 0.0) >= level:
            return f"{trial.handle}, {formats.duration(seconds)}"
    return formats.MISSING


def _validation(data: ReportData, metric: str) -> str:
    outcome = data.selected.outcome if data.selected else None
    if outcome is None:
        return formats.MISSING
    error = outcome.ndcg_se if metric == "ndcg@10" else None
    return formats.with_error(outcome.metrics.get(metric), error)


def _test(data: ReportData) -> str:
    if data.test is None:
        return "withheld" if data.withheld_by else formats.MISSING
    return f"{formats.with_error(data.test.metrics['ndcg@10'], data.test.ndcg10_se)} (look {data.test.look})"


def _test_difference(data: ReportData) -> str:
    found = data.test.default if data.test else None
    return formats.change(found.delta["ndcg@10"], found.delta_se["ndcg@10"]) if found else formats.MISSING


def _baseline(data: ReportData) -> str:
    best = strongest(data.baselines)
    return f"{formats.metric(best[1])} ({best[0]})" if best else formats.MISSING


def _gain(data: ReportData, over: float | None) -> str:
    return formats.relative(over, ndcg(data.selected) if data.selected else None)


def _default(data: ReportData) -> float | None:
    return ndcg(data.default) if data.default else None


def _best_baseline(data: ReportData) -> float | None:
    best = strongest(data.baselines)
    return best[1] if best else None


FACTS: dict[str, Callable[[ReportData], str]] = {
    "dataset": lambda data: data.session.dataset,
    "backbone": lambda data: data.session.backbone,
    "driven by": lambda data: data.session.client or formats.MISSING,
    "state": lambda data: data.session.state,
    "trials": lambda data: f"{trials_used(data.trials)} of {data.session.max_trials}",
    "training": lambda data: formats.duration(data.train_seconds),
    "best without a model, validation NDCG@10": _baseline,
    "default, validation NDCG@10": lambda data: formats.metric(_default(data)),
    "selected trial": lambda data: data.selected.handle if data.selected else formats.MISSING,
    "selected, validation NDCG@10": lambda data: _validation(data, "ndcg@10"),
    "selected, validation Recall@10": lambda data: _validation(data, "recall@10"),
    "gain over the default": lambda data: _gain(data, _default(data)),
    "gain over the best without a model": lambda data: _gain(data, _best_baseline(data)),
    "selected, test NDCG@10": _test,
    "difference to the default, test NDCG@10": _test_difference,
}
"""The rows of the comparison: title, and the text of a session."""
