"""The record as Markdown and JSON, with the receipts beside them; equal sessions give equal figures."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data.atomic import write_bytes
from ..data.errors import HomeError
from ..data.wording import counted
from ..report import formats
from .published import published, published_table, source_lines
from .record import NAME, Recorded
from .record_outcome import PartResult, RecordResult
from .tables import Table, figure, markdown, spread

NDCG, RECALL = "ndcg@10", "recall@10"
RECEIPTS = "receipts"

Row = tuple[RecordResult, PartResult]


def write_record(recorded: Recorded) -> list[Path]:
    """Write record.md, record.json and the receipts into the directory of the record; returns the paths, the Markdown
    first. Raises HomeError if it cannot be written."""
    out = recorded.request.out
    digests = {task.dataset: task.digest for task in recorded.tasks}
    content = {
        "repetitions": recorded.tasks[0].repetitions,
        "looks_elsewhere": recorded.looks_elsewhere,
        "failures": recorded.failures,
        "records": [{"task": digests[result.dataset], **result.model_dump(mode="json")} for result in recorded.results],
    }
    files = {
        out / f"{NAME}.md": as_markdown(recorded).encode(),
        out / f"{NAME}.json": (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(),
        **{out / receipt_file(part): receipt for part, receipt in _receipts(recorded)},
    }
    try:
        (out / RECEIPTS).mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            write_bytes(path, data)
    except OSError as error:
        raise HomeError(f"{out} cannot be written ({error.strerror}); choose another directory with --out") from None
    return list(files)


def provenance_lines(results: Sequence[RecordResult]) -> list[str]:
    """The machine, the versions, and how the sessions were run: one list, or a line per dataset if they differ."""
    first = results[0].provenance
    if first and all(result.provenance == first for result in results):
        return [f"- {name}: {value}" for name, value in first.items()]
    return [f"- {result.dataset}: {_in_words(result.provenance)}" for result in results]


def _in_words(provenance: dict[str, Any]) -> str:
    return "; ".join(f"{name} {value}" for name, value in provenance.items()) or "not stored by an earlier version"


def receipt_file(part: PartResult) -> str:
    """Where the receipt of a session is, below the directory of the record."""
    return f"{RECEIPTS}/{part.session}.json"


def _receipts(recorded: Recorded) -> Iterator[tuple[PartResult, bytes]]:
    for result, part in _rows(recorded.results):
        if part.receipt:
            yield part, (recorded.home_of(result.dataset) / part.receipt).read_bytes()


def _rows(results: Sequence[RecordResult]) -> list[Row]:
    return [(result, part) for result in results for part in result.parts]


def _orders(results: Sequence[RecordResult]) -> list[tuple[RecordResult, RecordResult]]:
    """The datasets that were recorded with both orders of ties: the plain one and its control."""
    drawn = {result.listed_as: result for result in results if result.dataset != result.listed_as}
    return [(result, drawn[result.dataset]) for result in results if result.dataset in drawn]


def as_markdown(recorded: Recorded) -> str:
    """The record as Markdown."""
    rows = _rows(recorded.results)
    tables = [
        test_table(rows), ties_table(recorded.results), seeds_table(rows), configurations_table(rows),
        trials_table(rows), cost_table(rows), receipts_table(rows),
    ]  # fmt: skip
    quoted = quoted_table(recorded.results)
    lines = [
        "# The record", "", about(recorded), "", *(markdown(table) for table in tables if table.rows),
        "## Machine and versions", "", *provenance_lines(recorded.results), "",
        *([markdown(quoted), *source_lines(), ""] if quoted.rows else []),
        "## What these figures cannot say", "", *(f"- {note}" for note in notes(recorded)), "",
    ]  # fmt: skip
    return "\n".join(lines)


def about(recorded: Recorded) -> str:
    """One paragraph that says how the figures came about."""
    seeds = counted(recorded.tasks[0].repetitions, "fresh seed")
    return (
        "Given configurations, nothing searched for. Each session ran its configurations under one seed and selected "
        f"the best one by validation NDCG@10. The server then drew {seeds}, trained the selected configuration under "
        "each, and looked at the test set once, with the models of all of them. The whole catalogue is ranked for "
        "every user, with the history masked and ties counted against the model."
    )


def test_table(rows: Sequence[Row]) -> Table:
    """The test figures, with those of the default beside them where it was run."""
    columns = (
        "data", "model", "seeds", "test NDCG@10", "test Recall@10", "SE over users", "validation NDCG@10",
        "of the selected trial", "inflation at most", "default: test NDCG@10", "difference to it", "look",
    )  # fmt: skip
    note = (
        "Test and validation: mean ± standard deviation over the fresh seeds; of an ensemble, whose members have the "
        "seed of the session, the one figure. SE over users: standard error of test NDCG@10, of the mean per user. Of "
        "the selected trial: validation NDCG@10 under the seed of the session, which the selection saw; inflation: the "
        "bound SE·√(2 ln K) of what choosing the best of K configurations adds to it. Default: one model of the seed "
        "of the session, in the same look; the difference is paired over users, with its standard error; "
        "“selected”: it is the selected trial itself. Look: which "
        "look at this test set it was, in the ledger of these sessions."
    )
    return Table("Test figures", columns, tuple(_test_row(*row) for row in rows), note)


def _test_row(result: RecordResult, part: PartResult) -> tuple[str, ...]:
    test = part.test
    default = test.default if test else None
    trials = part.confirmation.trials if part.confirmation else []
    confirmed = next((trial for trial in trials if trial.trial == part.selected), None)
    return (
        result.dataset, part.name, str(len(part.repetitions) or 1),
        spread(test.metrics[NDCG], test.metrics_sd.get(NDCG)) if test else "no look",
        spread(test.metrics[RECALL], test.metrics_sd.get(RECALL)) if test else "",
        formats.metric(test.ndcg10_se) if test else "",
        spread(confirmed.mean, confirmed.sd) if confirmed else "",
        formats.metric(part.validation[NDCG]), formats.metric(part.inflation),
        formats.metric(default.metrics[NDCG]) if default else "selected" if _selects_default(part) else "",
        formats.change(default.delta[NDCG], default.delta_se[NDCG]) if default else "",
        str(test.look) if test else "",
    )  # fmt: skip


def _selects_default(part: PartResult) -> bool:
    """Whether the selected trial is the plain default."""
    return part.test is not None and not part.settings and not part.members


def ties_table(results: Sequence[RecordResult]) -> Table:
    """The figures of each dataset that was recorded with both orders of ties; without rows if none was."""
    found = tuple(
        _ties_row((plain, part), (drawn, its))
        for plain, drawn in _orders(results)
        for part, its in zip(plain.parts, drawn.parts, strict=True)
    )
    columns = (
        "data", "model", "same configuration", "validation NDCG@10", "in random order", "change", "test NDCG@10",
        "in random order", "change",
    )  # fmt: skip
    note = (
        "A user's events at one time have the order of the log, or one that was drawn at random. Where the log lists "
        "such events in an order of its own, such as ascending item ids, a model can learn that order: the change says "
        "how much of a figure comes from it. Each order has selected for itself: where the configurations are not the "
        "same, the change contains the other choice, too. Validation: of the selected trials. The targets of the two "
        "differ, so the change is not paired over users."
    )
    return Table("The order of events at one time", columns, found, note, texts=3)


def _ties_row(plain_row: Row, drawn_row: Row) -> tuple[str, ...]:
    (result, part), (control, other) = plain_row, drawn_row
    same = "yes" if result.configuration(part) == control.configuration(other) else "no"
    pairs = [
        (part.validation[NDCG], other.validation[NDCG]),
        (part.test.metrics[NDCG] if part.test else None, other.test.metrics[NDCG] if other.test else None),
    ]
    figures = [(formats.metric(plain), formats.metric(drawn), formats.relative(plain, drawn)) for plain, drawn in pairs]
    return result.dataset, part.name, same, *figures[0], *figures[1]


def seeds_table(rows: Sequence[Row]) -> Table:
    """Each fresh seed with its figures."""
    columns = ("data", "model", "seed", "validation NDCG@10", "test NDCG@10", "test Recall@10", "seconds")
    found = tuple(
        (
            result.dataset, part.name, str(one.seed), formats.metric(one.validation),
            formats.metric(one.test[NDCG]) if one.test else "", formats.metric(one.test[RECALL]) if one.test else "",
            figure(one.seconds),
        )
        for result, part in rows
        for one in part.repetitions
    )  # fmt: skip
    return Table("Each seed", columns, found, "Seconds: wall clock of the process.")


def configurations_table(rows: Sequence[Row]) -> Table:
    """The selected configurations."""
    found = tuple(
        (
            result.dataset, part.name, part.selected, ", ".join(part.members) or formats.MISSING,
            ", ".join(part.teachers) or formats.MISSING, formats.settings(part.settings),
        )
        for result, part in rows
    )  # fmt: skip
    note = (
        "Settings that differ from the default of the backbone. Members: of an ensemble. Teachers: of a student, whose "
        "training targets are their predictions."
    )
    columns = ("data", "model", "trial", "members", "teachers", "settings")
    return Table("Configurations", columns, found, note, texts=6)


def trials_table(rows: Sequence[Row]) -> Table:
    """All trials, so that what the selection chose among can be seen."""
    columns = ("data", "model", "trial", "over", "changes", "outcome", "validation NDCG@10", "seconds")
    found = tuple(
        (
            result.dataset, part.name, trial.trial, trial.base, formats.settings(trial.changes, "none"),
            trial.verdict or trial.status, formats.metric(trial.ndcg10), figure(trial.wall_seconds),
        )
        for result, part in rows
        for trial in part.trials
    )  # fmt: skip
    note = "Of a sweep, the changes are its best setting. The verdict compares with the trials before it."
    return Table("Trials", columns, found, note, texts=6)


def cost_table(rows: Sequence[Row]) -> Table:
    """What the sessions took."""
    columns = ("data", "model", "trials", "seconds of the trials", "of a repetition", "of all repetitions")
    found = []
    for result, part in rows:
        seconds = [one.seconds for one in part.repetitions]
        mean = figure(sum(seconds) / len(seconds)) if seconds else ""
        spent = figure(sum(trial.wall_seconds for trial in part.trials))
        found.append((result.dataset, part.name, str(len(part.trials)), spent, mean, figure(sum(seconds))))
    whole = {result.dataset: result.wall_seconds for result, _ in rows}
    found += [(dataset, "all, on the clock", "", "", "", figure(seconds)) for dataset, seconds in whole.items()]
    note = "Wall clock of the processes; all, on the clock: with everything between them."
    return Table("Seconds", columns, tuple(found), note)


def receipts_table(rows: Sequence[Row]) -> Table:
    """The receipts, and how to check them."""
    found = tuple(
        (result.dataset, part.name, part.session, part.receipt_sha256[:16], f"`virtualmle verify {receipt_file(part)}`")
        for result, part in rows
        if part.receipt
    )
    note = (
        "A receipt is signed. It states the choice that was frozen before the look, the result, and the excerpt of the "
        "audit log. `verify` checks it on any machine; with `--log FILE` also that the test targets are those of a log."
    )
    return Table("Receipts", ("data", "model", "session", "SHA-256 begins with", "check"), found, note, texts=5)


def quoted_table(results: Sequence[RecordResult]) -> Table:
    """Published figures on the datasets of the record; without rows if there are none."""
    names = [result.dataset.lower() for result in results]
    quoted = {row.dataset for row in published()}
    return published_table({name for name in quoted if any(name.lower().replace(" ", "-") in one for one in names)})


def notes(recorded: Recorded) -> Iterator[str]:
    """What the figures cannot say."""
    for result, part in _rows(recorded.results):
        if part.test is None:
            yield f"{part.session} is {part.state} and has no test figure."
        elif part.test.look_note:
            yield f"Look {part.test.look} at {result.dataset}: {part.test.look_note}."
    for dataset, number in recorded.looks_elsewhere.items():
        if number:
            yield (
                f"The ledgers of the base home and of other sessions in this directory have {counted(number, 'look')} "
                f"at the content of {dataset}. Whoever chose the configurations may know these figures."
            )
    for plain, drawn in _orders(recorded.results):
        yield (
            f"{plain.dataset} and {drawn.dataset} have the content of one log: the looks of both are looks at one "
            "content, and the ledger of each numbers its own only."
        )
    yield "The configurations were given: no ledger of these sessions says what was known when they were chosen."
    yield (
        "The fresh seeds follow from the seed of the session, the dataset and the number of the repetition: all "
        "records of a dataset draw the same ones, and the author of a second recipe may know figures under them."
    )
    if any(part.members for _, part in _rows(recorded.results)):
        yield "An ensemble has one figure, of members under one seed; it has no standard deviation over seeds."
    if any(part.teachers for _, part in _rows(recorded.results)):
        yield (
            "Each fresh seed trains a student again, with teachers under the seed of the session: the standard "
            "deviation does not contain theirs, and the seconds of a repetition do not contain their training."
        )
    yield "The standard deviation is over seeds on one split of the data; it says nothing about other users or times."
    for key, error in recorded.failures.items():
        yield f"{key} failed and is missing: {error}"

