"""The tables of a comparison as text cells, which Markdown, HTML and the terminal share; and its CSV files."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..report import formats
from .outcome import SessionResult
from .summary import ALL, ArmRow, Comparison, Estimate, Race, Reach, Summary


@dataclass(frozen=True)
class Table:
    """A table with its title and a note; the columns after the first `texts` ones are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    texts: int = 2
    strong: frozenset[int] = field(default_factory=frozenset)  # rows to set in bold


def markdown(table: Table) -> str:
    """The table as Markdown, with its title as a heading."""
    rule = "|".join(["---"] * table.texts + ["--:"] * (len(table.columns) - table.texts))
    lines = [f"## {table.title}", "", f"| {' | '.join(table.columns)} |", f"|{rule}|"]
    for number, row in enumerate(table.rows):
        cells = [f"**{cell}**" if number in table.strong and cell else cell for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *(["", table.note] if table.note else []), ""])


def tables_of(summary: Summary) -> list[Table]:
    """All tables of a comparison; those without a row are left out."""
    found = [results_table(summary), clocks_table(summary), races_table(summary), tests_table(summary)]
    return [table for table in [*found, models_table(summary), effort_table(summary)] if table.rows]


def results_table(summary: Summary) -> Table:
    """Final validation per arm, and the test figure if a session looked at it."""
    note = (
        "Mean ± standard deviation over seeds of NDCG@10. Mean best so far: the best validation figure so far, "
        f"averaged over {summary.trials} trials."
    )
    looked = any(row.test is not None for row in summary.rows)
    rows = [
        (
            row.group, row.arm, str(row.sessions), spread(row.validation, row.validation_sd),
            formats.metric(row.anytime), *([spread(row.test, row.test_sd)] if looked else []),
        )
        for row in summary.rows
    ]  # fmt: skip
    columns = ("data", "arm", "sessions", "final validation", "mean best so far", *(["test"] if looked else []))
    note += " Test: one look of each session, at the trial that validation selected." if looked else ""
    return Table("Results", columns, tuple(rows), note, strong=_bold(summary, lambda row: row.validation))


def _bold(summary: Summary, measure: Callable[[ArmRow], float]) -> frozenset[int]:
    """The rows whose arm is best in its group."""
    best: dict[str, float] = {}
    for row in summary.rows:
        best[row.group] = max(measure(row), best.get(row.group, 0.0))
    return frozenset(number for number, row in enumerate(summary.rows) if measure(row) == best[row.group])


def clocks_table(summary: Summary) -> Table:
    """Trials and training seconds to the level and to the best."""
    note = (
        f"Level: {summary.level}. Medians are Kaplan-Meier estimates with 95 % bootstrap intervals: a session that "
        "never "
        "reached the level counts up to its end. Restricted mean: the mean of min(time, limit). Seconds are training "
        "seconds that the budget was charged."
    )
    columns = (
        "data", "arm", "reached", "trials to level", "restricted mean", "seconds to level", "restricted mean",
        "trials to best", "seconds to best", "seconds used",
    )  # fmt: skip
    return Table("Two clocks", columns, tuple(_clock_row(row) for row in summary.rows), note)


def _clock_row(row: ArmRow) -> tuple[str, ...]:
    trials = row.reach[0]
    seconds = row.reach[1] if len(row.reach) > 1 else None
    return (
        row.group, row.arm, f"{trials.reached} of {trials.sessions}",
        reached(trials), f"{trials.restricted_mean:.1f} of {trials.limit:g}",
        reached(seconds), f"{figure(seconds.restricted_mean)} of {figure(seconds.limit)}" if seconds else "",
        estimate(row.trials_to_best), estimate(row.seconds_to_best), figure(row.train_seconds),
    )  # fmt: skip


def reached(reach: Reach | None) -> str:
    """`8 [7, 10]`; `> 25` where fewer than half of the sessions reached the level in 25 trials."""
    if reach is None:
        return ""
    if reach.median.value is None:
        return f"> {figure(reach.limit)}" if reach.clock == "trials" else "by fewer than half"
    return estimate(reach.median)


def estimate(estimated: Estimate) -> str:
    """`8.0 [7.1, 9.4]`; an end that is infinite is `∞`."""
    if estimated.low is None and estimated.high is None:
        return figure(estimated.value)
    return f"{figure(estimated.value)} [{figure(estimated.low)}, {figure(estimated.high)}]"


def figure(value: float | None) -> str:
    """A number of trials or seconds, or a share, with about three digits; `∞` for None."""
    if value is None:
        return "∞"
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def races_table(summary: Summary) -> Table:
    """How soon the reference reaches each rival's final best."""
    note = (
        f"How soon {summary.reference} reaches the final validation figure of each rival at the same dataset, backbone "
        "and "
        "seed, as a share of the trials or training seconds that the rival used in all, and of those that it used "
        "until it "
        "found that figure. Kaplan-Meier medians with 95 % bootstrap intervals; ∞: fewer than half reach it."
    )
    columns = ("data", "rival", "clock", "reached", "share of the rival's session", "share of its time to that figure")
    rows = tuple(_race_row(race) for race in summary.races)
    return Table(f"{summary.reference} to each rival's level", columns, rows, note, texts=3)


def _race_row(race: Race) -> tuple[str, ...]:
    shares = estimate(race.of_session), estimate(race.of_time_to_best)
    return race.group, race.arm, race.clock, f"{race.reached} of {race.pairs}", *shares


def tests_table(summary: Summary) -> Table:
    """The paired tests."""
    note = (
        f"{summary.reference} minus the arm, paired by dataset, backbone and seed. Sign flips: the exact permutation "
        "test "
        "of the mean; signed ranks: Wilcoxon's test; Holm: the first, corrected over the arms of one group and "
        "outcome. "
        "d: Cohen's d of the paired differences. Intervals are 95 % bootstrap intervals over the pairs."
    )
    columns = (
        "outcome", "data", "against", "pairs", "difference of NDCG@10", "relative", "d", "p sign flips",
        "p signed ranks", "p Holm",
    )  # fmt: skip
    rows = tuple(_test_row(row) for row in summary.comparisons)
    return Table("Paired tests", columns, rows, note, texts=3)


def _test_row(row: Comparison) -> tuple[str, ...]:
    difference = formats.signed(row.difference.value)
    if row.difference.low is not None:
        difference += f" [{formats.signed(row.difference.low)}, {formats.signed(row.difference.high)}]"
    return (
        row.outcome, row.group, row.arm, str(row.pairs), difference,
        "" if row.relative is None else f"{100 * row.relative:+.1f} %", "" if row.d is None else f"{row.d:+.2f}",
        probability(row.p_sign_flip), probability(row.p_signed_rank), probability(row.p_holm),
    )  # fmt: skip


def probability(p: float) -> str:
    """Three decimals; smaller values as `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def effort_table(summary: Summary) -> Table:
    """What the sessions took, besides trials."""
    note = (
        "Means per session. Refused and duplicate configurations used no budget. Wall clock: of the session's process. "
        "Came true: of the server's proposals that a trial followed, those with a gain of at least one standard error, "
        "among those that gained or lost as much."
    )
    rows = tuple(
        (
            row.group, row.arm, figure(row.trials), figure(row.train_seconds), figure(row.wall_seconds),
            figure(row.refused), figure(row.duplicates), _came_true(row),
        )
        for row in summary.rows
        if row.group != ALL
    )  # fmt: skip
    columns = ("data", "arm", "trials", "training seconds", "wall-clock seconds", "refused", "duplicates", "came true")
    return Table("Effort", columns, rows, note)


def _came_true(row: ArmRow) -> str:
    clear = row.proposals_true + row.proposals_false
    followed = clear + row.proposals_unclear
    return f"{row.proposals_true} of {clear} ({followed} followed)" if followed else ""


def models_table(summary: Summary) -> Table:
    """Tokens and money of the arms that asked a language model."""
    note = "Means per session, from the cost ledger. Sent: with cached tokens. Money is unknown where a price is."
    rows = tuple(
        (
            row.group, row.arm, figure(row.calls), figure(round(row.input_tokens)), figure(round(row.output_tokens)),
            "unknown" if row.usd is None else f"{row.usd:.4f}", spread(row.validation, row.validation_sd),
            spread(row.test, row.test_sd),
        )
        for row in summary.rows
        if row.calls
    )  # fmt: skip
    columns = ("data", "arm", "calls", "tokens sent", "tokens received", "US dollars", "final validation", "test")
    return Table("Language models", columns, rows, note)


def spread(value: float | None, sd: float | None) -> str:
    """`0.0798 ± 0.0014`; without a standard deviation the value alone."""
    return "" if value is None else formats.with_error(value, sd)


def sessions_csv(results: Sequence[SessionResult]) -> str:
    """One line per session."""
    columns = (
        "arm", "dataset", "backbone", "seed", "state", "trials", "validation_ndcg10", "test_ndcg10", "look",
        "train_seconds", "wall_seconds", "refused", "duplicates", "selected", "settings",
    )  # fmt: skip
    rows = [
        (
            r.arm, r.dataset, r.backbone, r.seed, r.state, len(r.trials), r.final,
            r.test["ndcg@10"] if r.test else "", "" if r.look is None else r.look, round(r.train_seconds, 3),
            r.wall_seconds, r.refused, r.duplicates, r.selected or "", json.dumps(r.settings, sort_keys=True),
        )
        for r in results
    ]  # fmt: skip
    return _csv(columns, rows)


def trials_csv(results: Sequence[SessionResult]) -> str:
    """One line per trial: what the curves are drawn from."""
    columns = (
        "arm", "dataset", "backbone", "seed", "trial", "status", "verdict", "validation_ndcg10", "train_seconds",
        "saved_seconds", "rescored", "base", "changes",
    )  # fmt: skip
    rows = [
        (
            r.arm, r.dataset, r.backbone, r.seed, t.trial, t.status, t.verdict or "",
            "" if t.ndcg10 is None else t.ndcg10, round(t.train_seconds, 3),
            round(t.saved_seconds, 3), t.rescored, t.base,
            json.dumps(t.changes, sort_keys=True),
        )
        for r in results
        for t in r.trials
    ]  # fmt: skip
    return _csv(columns, rows)


def table_csv(table: Table) -> str:
    """A table as it is printed."""
    return _csv(table.columns, table.rows)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()
