"""A session as a tracker sees it: runs with parameters, series of epochs and final figures, read from the home.

Everything is read and nothing is written. There are no test figures before the examiner has revealed them, nor
while another session on the same content is open.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..data.hashing import sha256_of
from ..memory.records import SessionRecord, TrialRecord, TrialStatus
from ..memory.store import Memory
from ..models.knobs.declaration import Value
from ..sandbox.action_space import Knob
from ..sandbox.protocol import parse_protocol
from ..tools.cognition import select
from ..tools.withholding import shown_result
from ..training.spec import STATE, read_progress
from ..training.state_outline import read_curve

Series = tuple[tuple[int, float], ...]  # (step, value), ascending; the step of a trial is its epoch

CLOSED = ("revealed", "void")


@dataclass(frozen=True)
class TrackedTrial:
    """One trial. `knobs` are the values of the session's knobs, or None while a sweep has not chosen its own."""

    handle: str
    number: int
    status: TrialStatus
    knobs: dict[str, Value] | None
    tags: dict[str, str]
    series: dict[str, Series]  # by name: model_ndcg_at_10, best_ndcg_at_10, train_loss
    figures: dict[str, float]  # once it has ended
    value: float | None  # validation NDCG@10 of a finished trial, by which it is judged
    step: int  # the epoch that the figures belong to
    started: float  # seconds since the epoch
    ended: float | None
    seconds: tuple[float, ...] = ()  # since its start, of the points of the series; empty while it runs

    @property
    def is_over(self) -> bool:
        """Whether nothing about the trial will change."""
        return self.status != "running"


@dataclass(frozen=True)
class Snapshot:
    """A session at one moment. Equal snapshots need no second synchronisation."""

    session: SessionRecord
    key: str
    knobs: Sequence[Knob]
    trials: tuple[TrackedTrial, ...]
    tags: dict[str, str]
    best: Series  # the best validation NDCG@10 so far, by the number of the trial
    figures: dict[str, float]  # validation of the selected trial; test figures once they are revealed
    test: dict[str, float]
    files: tuple[tuple[str, Path, str], ...]  # (name, report or export, digest) as far as they exist

    @property
    def name(self) -> str:
        """A name that differs between homes, where sessions may have the same id."""
        return f"{self.session.id}-{self.key[:6]}"

    @property
    def is_over(self) -> bool:
        """Whether the session is closed, so that only its files may still change."""
        return self.session.state in CLOSED or bool(self.session.replay and self.session.state == "frozen")


def read_snapshot(home: Path, memory: Memory, session: str, export: Path | None = None) -> Snapshot:
    """The session now. `export`: a directory that `virtualmle export` has written.

    Raises SessionError for an unknown session, SealError if its revealed result is damaged.
    """
    record = memory.sessions.get(session)
    trials = memory.trials.all(record.id)
    page = parse_protocol(record.protocol_text, source=f"SANDBOX.md of session {record.id}")
    knobs = page.space.knobs(record.backbone)
    tracked = [_trial(home, trial, [knob.name for knob in knobs]) for trial in trials]
    test = shown_result(home, memory, record)
    tested = _metrics("test", test.metrics) if test else {}
    return Snapshot(
        session=record,
        key=hashlib.blake2b(f"{record.id}|{record.opened_at}|{record.dataset_id}".encode(), digest_size=8).hexdigest(),
        knobs=knobs,
        trials=tuple(tracked),
        tags=_session_tags(record, len(memory.sessions.extensions(record.id)))
        | ({"look": str(test.look)} if test else {}),
        best=_best_so_far(tracked),
        figures=_selected_figures(record, trials),
        test=tested,
        files=tuple(_files(home, record.id, export)),
    )


def _session_tags(record: SessionRecord, extensions: int) -> dict[str, str]:
    return {
        "session": record.id,
        "dataset": record.dataset,
        "dataset_id": record.dataset_id,
        "backbone": record.backbone,
        "state": record.state,
        "seed": str(record.seed),
        "client": record.client,
        "max_trials": str(record.max_trials),
        "max_train_seconds": f"{record.max_train_seconds:g}",
        "extensions": str(extensions),
        "protocol": record.protocol_hash[:12],
        "selected": record.selected or "",
    }


def _selected_figures(record: SessionRecord, trials: Sequence[TrialRecord]) -> dict[str, float]:
    """The validation figures of the selected trial; before the freeze, of the best one so far."""
    if not any(trial.status == "finished" for trial in trials):
        return {}
    chosen = next((trial for trial in trials if trial.handle == record.selected), None) or select(list(trials))
    return _metrics("validation", chosen.outcome.metrics) if chosen.outcome else {}


def _best_so_far(trials: Sequence[TrackedTrial]) -> Series:
    finished = [(trial.number, trial.value) for trial in trials if trial.value is not None]
    values = itertools.accumulate((value for _, value in finished), max)
    return tuple((number, best) for (number, _), best in zip(finished, values, strict=True))


def _trial(home: Path, trial: TrialRecord, knobs: Sequence[str]) -> TrackedTrial:
    outcome = trial.outcome
    directory = home / ".virtualmle" / "sessions" / trial.session / trial.handle
    curve: list[dict[str, Any]] = outcome.curve if outcome else _live_curve(directory)
    chosen = trial.sweep is None or outcome is not None
    figures = _figures(trial)
    return TrackedTrial(
        handle=trial.handle,
        number=trial.number,
        status=trial.status,
        knobs={name: trial.config[name] for name in knobs if name in trial.config} if chosen else None,
        tags=_trial_tags(trial),
        series=_series(curve, None if outcome else directory),
        figures=figures,
        value=outcome.metrics.get("ndcg@10") if outcome and trial.status == "finished" else None,
        step=int(outcome.details.get("best_epoch") or 0) if outcome else 0,
        started=seconds_of(trial.created_at),
        ended=seconds_of(trial.finished_at) if trial.finished_at else None,
        seconds=_elapsed(curve),
    )


def _trial_tags(trial: TrialRecord) -> dict[str, str]:
    outcome = trial.outcome
    changes = ", ".join(f"{knob}={value}" for knob, value in trial.changes.items())
    tags = {
        "trial": trial.handle,
        "status": trial.status,
        "base": trial.base,
        "changes": changes or "none",
        "hypothesis": trial.hypothesis.reason if trial.hypothesis else "",
        "verdict": (outcome.verdict or "") if outcome else "",
        "reason": (outcome.reason or outcome.cause or "") if outcome else "",
        "reused_from": str(outcome.details.get("reused_from") or "") if outcome else "",
    }
    return {name: text for name, text in tags.items() if text}


def _figures(trial: TrialRecord) -> dict[str, float]:
    """The figures of a trial that has ended; of one that racing stopped, the bound instead of the metrics."""
    outcome = trial.outcome
    if outcome is None:
        return {}
    optional = {
        "validation/ndcg_at_10_se": outcome.ndcg_se,
        "validation/ndcg_at_10_at_most": trial.bound,
        "incumbent/delta": outcome.delta,
        "incumbent/z": outcome.z,
        "base/delta": outcome.base_delta,
    }
    known = {name: float(value) for name, value in optional.items() if value is not None}
    costs = {"train_seconds": outcome.train_seconds, "parameters": float(outcome.parameters)}
    return _metrics("validation", outcome.metrics) | known | costs


def _metrics(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    """Metrics under names that every tracker accepts; MLflow refuses the @ of ndcg@10."""
    return {f"{prefix}/{name.replace('@', '_at_')}": value for name, value in metrics.items()}


def _live_curve(directory: Path) -> list[dict[str, Any]]:
    """The curve of a running trial in its last saved training state, which may be some epochs behind."""
    return [{"epoch": epoch, "ndcg10": ndcg10} for epoch, ndcg10 in read_curve(directory / STATE)]


def _series(curve: Sequence[dict[str, Any]], running: Path | None) -> dict[str, Series]:
    """The series of a curve; of a running trial, the best value of its progress file follows."""
    points = [(int(point["epoch"]), float(point["ndcg10"])) for point in curve if "ndcg10" in point]
    losses = [(int(point["epoch"]), float(point["loss"])) for point in curve if "loss" in point]
    best = list(zip((epoch for epoch, _ in points), itertools.accumulate((v for _, v in points), max), strict=True))
    if running and (progress := read_progress(running)).best_ndcg10 is not None:
        best += [(progress.epoch, progress.best_ndcg10)] if progress.epoch not in dict(best) else []
    named = {"model_ndcg_at_10": points, "best_ndcg_at_10": sorted(best), "train_loss": losses}
    return {name: tuple(values) for name, values in named.items() if values}


def _elapsed(curve: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    """Seconds from the start of a trial to each evaluated epoch; empty for a curve without times."""
    spent = [float(point.get("train_seconds", 0)) + float(point.get("evaluate_seconds", 0)) for point in curve]
    return tuple(itertools.accumulate(spent)) if any(spent) else ()


def _files(home: Path, session: str, export: Path | None) -> list[tuple[str, Path, str]]:
    report = home / ".virtualmle" / "reports" / f"{session}.html"
    manifest = export / "manifest.json" if export else None
    found = [("report", report, sha256_of(report))] if report.exists() else []
    if export and manifest and manifest.exists():
        found.append(("export", export, sha256_of(manifest)))
    return found


def seconds_of(moment: str) -> float:
    """A time of memory.db in seconds since the epoch."""
    return datetime.fromisoformat(moment).timestamp()
