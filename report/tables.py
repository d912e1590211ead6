"""Tables for the terminal (rich). Text written by agents is shown literally: rich markup in it is not interpreted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..data.wording import counted
from ..examiner.request import TestResult
from ..memory.records import Confirmation, Extension, TrialRecord
from ..sandbox.program import trials_measured
from ..sandbox.selection import selection_reason
from ..tools.withholding import withheld_sentence
from . import formats
from .gather import ReportData
from .split_agreement import split_of

# Terminal colours; the order is also the order in which the report lists counts.
STYLES = {"keep": "green", "discard": "dim", "stopped": "dim", "crash": "red", "machine fault": "yellow",
          "running": "yellow", "cancelled": "dim"}  # fmt: skip


def trials_table(records: Sequence[TrialRecord]) -> Table:
    """One row per trial: base, changes, verdict, metric, difference to the incumbent; fits into 80 columns."""
    table = Table(title="Trials (validation)", title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column("trial")
    table.add_column("changes", overflow="fold", ratio=1)
    table.add_column("verdict")
    for heading in ("NDCG@10", "Δ incumbent (z)", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        table.add_row(*(Text(cell) for cell in _cells(record)), style=STYLES.get(verdict_label(record), ""))
    return table


def _cells(record: TrialRecord) -> list[str]:
    outcome = record.outcome
    changes = formats.settings(record.changes, "default" if record.base == "default" else "nothing", separator="\n")
    if record.base != "default":
        changes = f"{record.base} + {changes}"
    if formats.origin(record):
        changes += f"\n({formats.origin(record)})"
    if outcome is None:
        return [record.handle, changes, record.status, *[formats.MISSING] * 3]
    return [
        record.handle,
        changes,
        verdict_label(record),
        formats.at_most(record.bound) if record.status == "stopped" else formats.metric(outcome.metrics.get("ndcg@10")),
        formats.change(outcome.delta, z=outcome.z),
        f"{outcome.wall_seconds or outcome.train_seconds:.1f}",
    ]


def verdict_label(record: TrialRecord) -> str:
    """The verdict (keep, discard, crash), or the status (running, cancelled) of a trial without a verdict.

    A stopped trial is discarded without a value, and has its status as its label. A crash caused by the machine has a
    label of its own, because it says nothing about the configuration.
    """
    if record.machine_fault:
        return "machine fault"
    if record.status == "stopped":
        return record.status
    return (record.outcome.verdict if record.outcome else None) or record.status


def result_table(data: ReportData) -> Table:
    """Validation metrics of the default and the selected trial, and the test metrics if they were revealed."""
    default, selected, test = data.default, data.selected, data.test
    before = default.outcome.metrics if default and default.outcome else {}
    after = selected.outcome.metrics if selected and selected.outcome else {}
    table = Table(title=f"{data.session.id}: result", title_justify="left", box=SIMPLE_HEAD)
    table.caption, table.caption_justify = Text(caption(data), style="dim"), "left"
    table.add_column("metric")
    table.add_column("default,\nvalidation", justify="right")
    table.add_column(f"{selected.handle if selected else 'selected'},\nvalidation", justify="right")
    table.add_column("change", justify="right")
    if test:
        table.add_column(f"{data.session.selected},\ntest (look {test.look})", justify="right", style="bold")
    for name in formats.METRICS:
        values = [before.get(name), after.get(name)]
        row = [formats.METRIC_TITLES[name], *map(formats.metric, values), formats.relative(*values)]
        table.add_row(*row, *(test_cells(test, name)[:1] if test else []))
    return table


def test_table(data: ReportData) -> Table | None:
    """The look's figures of the selected trial and the default; None without a look at both."""
    if data.test is None or data.test.default is None:
        return None
    table = Table(title="Test, selected and default", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("metric")
    for title in (data.test.trial, f"{data.test.default.trial}, the default", "difference, paired"):
        table.add_column(title, justify="right")
    for name in formats.METRICS:
        table.add_row(formats.METRIC_TITLES[name], *test_cells(data.test, name))
    return table


def test_cells(test: TestResult, name: str) -> list[str]:
    """A metric of the look: the selected trial's and, if the look has them, the default's and the paired difference."""
    error = test.metrics_sd.get(name) if test.repetitions else test.metrics_se.get(name)
    cells, other = [formats.with_error(test.metrics.get(name), error)], test.default
    if other is None:
        return cells
    difference = formats.change(other.delta.get(name), other.delta_se.get(name))
    return [*cells, formats.with_error(other.metrics.get(name), other.metrics_se.get(name)), difference]


def confirmation_rows(confirmation: Confirmation) -> list[list[str]]:
    """Per confirmed trial: handle, NDCG@10 before, mean ± sd over seeds, paired difference to the best mean ± SE."""
    return [
        [
            each.trial,
            formats.metric(each.ndcg10),
            each.failed or formats.with_error(each.mean, each.sd),
            formats.change(each.delta, each.se) if each.delta is not None else formats.MISSING,
        ]
        for each in confirmation.trials
    ]


def confirmation_sentence(confirmation: Confirmation) -> str:
    """What the confirmation decided and cost, and what the ± of the test figures is."""
    cost = formats.duration(confirmation.train_seconds)
    return f"{confirmation.reason} {cost} of training beyond the budget."


def extension_sentences(extensions: Sequence[Extension]) -> str:
    """Which budgets people added to a session while it was open; empty if none."""
    return " ".join(
        "The budget was extended by "
        + " and ".join(
            part
            for part in (
                counted(each.trials, "trial") if each.trials else "",
                f"{formats.duration(each.seconds)} of training" if each.seconds else "",
            )
            if part
        )
        + f" after {counted(each.after, 'trial')}."
        for each in extensions
    )


def caption(data: ReportData) -> str:
    """The note below the result: the bound on selection bias, and the state of the test set."""
    bound = "" if data.inflation is None else (
        f"Best of {counted(trials_measured(data.trials), 'configuration')}: selection may inflate validation by up to "
        f"{formats.metric(data.inflation)}. "
    )
    confirmed = f"{confirmation_sentence(data.confirmation)} " if data.confirmation else ""
    extended = f"{extension_sentences(data.extensions)} " if data.extensions else ""
    bound = f"{selection_sentence(data)}{bound}"
    return " ".join([bound + confirmed + extended + test_sentence(data), *split_sentences(data)])


def selection_sentence(data: ReportData) -> str:
    """Why a trial is selected that was discarded, as the beginning of a text; empty for any other."""
    selected = data.selected
    if selected is None or selected.outcome is None or selected.outcome.verdict != "discard":
        return ""
    return f"{selection_reason(selected, data.trials, data.confirmation)} "


def split_sentences(data: ReportData) -> list[str]:
    """Which split the figures belong to, and how other splits of the same log order the configurations."""
    return [f"Split: {split_of(data.session)}.", *(each.sentence for each in data.agreements)]


def replay_sentence(source: Mapping[str, Any]) -> str:
    """What a replayed session was served from."""
    return (
        f"A replay of {Path(source['path']).name}: {source['cells']:,} configurations, measured {source['date']} at "
        f"commit {source['commit']} on {source['processor']} with seed {source['seed']}; seconds are {source['clock']} "
        "time. No trial was trained, and a table has no test set."
    )


def test_sentence(data: ReportData) -> str:
    """The state of the session's test evaluation, in one sentence."""
    if data.session.replay:
        return replay_sentence(data.session.replay)
    if data.test:
        models = len(data.test.repetitions)
        means = f" Test figures are mean ± standard deviation of {models} models under fresh seeds." if models else ""
        look = f"look number {data.test.look} in this home{data.test.look_remark}"
        other = data.test.default
        paired = f" The default, {other.trial}, was part of it; differences are paired over users." if other else ""
        return f"Test set of this dataset's content: {look}.{means}{paired}"
    if data.withheld_by:
        return withheld_sentence(data.session.id, data.withheld_by)
    return {
        "open": "The test set is sealed; finalize looks at it once.",
        "frozen": "The session is frozen; the test set has not been looked at.",
        "attempted": "A look at the test set has started and is recorded; its result is not available yet.",
        "void": "The one look at the test set was used and gave no result.",
        "revealed": "The test result is not in this home's vault.",
    }[data.session.state]
