"""What the sessions of a record on one dataset came to, read from their home when they are over.

Test figures come only from the examiner's revealed results, and the seeds from the specifications of the trials.
"""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.errors import SealError, SessionError
from ..examiner.ledger import looks_at
from ..examiner.receipts import to_bytes
from ..examiner.request import TestResult, looks, read_revealed
from ..memory.records import Confirmation, SessionRecord, TrialRecord
from ..memory.store import Memory
from ..models.config import teachers_of
from ..models.knobs.trial_names import NAMING, names_in
from ..sandbox.program import trials_measured
from ..sandbox.protocol import parse_protocol
from ..sandbox.statistics import selection_inflation
from ..tools.contents import content_in
from ..tools.receipts import receipt_of
from ..tools.workspace import trial_directory
from ..training.spec import read_spec
from .outcome import RESULT, Ended, TrialResult, stored_progress, trial_result
from .provenance import machine, versions
from .record_task import Part, RecordTask


class Repetition(BaseModel):
    """The selected configuration under one fresh seed that the server has drawn."""

    model_config = ConfigDict(frozen=True)

    seed: int
    validation: float  # NDCG@10
    test: dict[str, float] | None  # None without a look
    seconds: float  # wall-clock seconds of its process


class PartResult(BaseModel):
    """One session of a record. `test` is None if no look was taken."""

    model_config = ConfigDict(frozen=True)

    name: str  # the backbone, or "ensemble"
    backbone: str
    session: str
    state: str
    seed: int  # of all trials of the session
    trials: tuple[TrialResult, ...]
    selected: str
    members: tuple[str, ...]  # of an ensemble
    teachers: tuple[str, ...] = ()  # of a student
    settings: dict[str, Any]  # of the selected trial, where they differ from the backbone's default
    validation: dict[str, float]  # of the selected trial
    inflation: float  # SE·√(2 ln K) of validation NDCG@10, for K measured configurations
    confirmation: Confirmation | None
    repetitions: tuple[Repetition, ...]
    device: str
    test: TestResult | None
    receipt: str  # the file of the receipt below its home; empty without one
    receipt_sha256: str = ""

    def changes_of(self, trial: str) -> dict[str, Any]:
        """The changes of a trial over the default, with those of the trials that it builds on."""
        one = next(each for each in self.trials if each.trial == trial)
        return {**(self.changes_of(one.base) if one.base != "default" else {}), **one.changes}


class RecordResult(Ended):
    """All sessions of a record on one dataset, in the order in which they were opened."""

    dataset: str
    dataset_id: str
    listed_as: str  # the name of the dataset in the recipes; that of the plain dataset for one with random ties
    profile: dict[str, Any]  # train-only statistics of the dataset
    parts: tuple[PartResult, ...]
    wall_seconds: float
    provenance: dict[str, Any] = {}  # where and how its sessions ended; empty if an earlier version has stored it

    def configuration(self, part: PartResult) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
        """What a session has selected, by settings instead of names: its own, and those of the models that it uses."""
        found = []
        for model in (*part.members, *part.teachers):
            session, _, trial = model.rpartition("/")
            source = next(each for each in self.parts if each.session == (session or part.session))
            found.append((source.name, source.changes_of(trial)))
        return part.settings, sorted(found, key=repr)

    @property
    def num_trials(self) -> int:
        """The trials of all sessions, and their repetitions."""
        return sum(len(part.trials) + len(part.repetitions) for part in self.parts)

    @property
    def ending(self) -> str:
        """The test figures, in one line."""
        shown = (f"{part.name} {part.test.metrics['ndcg@10']:.4f}" for part in self.parts if part.test)
        return f"test NDCG@10: {', '.join(shown) or 'none'}, after {self.num_trials} trials and repetitions"


def stored_record(home: Path) -> RecordResult | None:
    """The result in `home`; None if its sessions are not over, or if another version has stored it."""
    try:
        return RecordResult.model_validate_json((home / RESULT).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def read_record(task: RecordTask, parts: Sequence[Part]) -> RecordResult:
    """The result of the sessions in the home of `task`. Raises SessionError if one of them is missing."""
    home = Path(task.home)
    with Memory(home / "memory.db") as memory:
        sessions = memory.sessions.all()
        if len(sessions) < len(parts):
            raise SessionError(f"home={task.home!r} lacks sessions of the record; run the same command again")
        read = tuple(_part(home, memory, part, record) for part, record in zip(parts, sessions, strict=True))
    return RecordResult(
        dataset=task.dataset,
        dataset_id=task.dataset_id,
        listed_as=task.listed_as,
        profile=sessions[0].profile,
        parts=read,
        wall_seconds=round(stored_progress(home).wall_seconds, 1),
        provenance=provenance_of(task, read),
    )


def provenance_of(task: RecordTask, parts: Sequence[PartResult]) -> dict[str, Any]:
    """The machine, the versions, and how the sessions were run, at the time of this call."""
    devices = dict.fromkeys(part.device for part in parts if part.device)
    run = {"device": ", ".join(devices), "threads": task.threads, "parallel": task.parallel, "jobs": task.jobs}
    return {**machine(), **versions(), **run}


def _part(home: Path, memory: Memory, part: Part, session: SessionRecord) -> PartResult:
    trials = memory.trials.all(session.id)
    selected = next(trial for trial in trials if trial.handle == session.selected)
    assert selected.outcome is not None  # only finished trials are selected
    test = read_revealed(home, session.id)
    path, digest = _receipt(home, session)
    return PartResult(
        name=part.name,
        backbone=part.backbone,
        session=session.id,
        state=session.state,
        seed=_seed(home, selected),
        trials=tuple(trial_result(trial) for trial in trials if not trial.machine_fault),
        selected=selected.handle,
        members=names_in(selected.configuration.ensemble),
        teachers=teachers_of(selected.configuration),
        settings=_settings(session, selected),
        validation=selected.outcome.metrics,
        inflation=selection_inflation(selected.outcome.ndcg_se or 0.0, trials_measured(trials)),
        confirmation=_confirmation(memory, session),
        repetitions=_repetitions(home, memory.trials.repetitions(session.id), selected, test),
        device=str(selected.outcome.details.get("device", "")),
        test=test,
        receipt=path,
        receipt_sha256=digest,
    )


def _settings(session: SessionRecord, trial: TrialRecord) -> dict[str, Any]:
    """The settings of a trial without the names of other trials, which are stated on their own."""
    space = parse_protocol(session.protocol_text, f"SANDBOX.md of session {session.id}").space
    return {name: value for name, value in space.differences(trial.configuration).items() if name not in NAMING}


def _confirmation(memory: Memory, session: SessionRecord) -> Confirmation | None:
    stored = [summary.computed for summary in memory.summaries.all() if summary.session == session.id]
    return next((Confirmation(**computed["confirmation"]) for computed in stored if "confirmation" in computed), None)


def _repetitions(
    home: Path, repetitions: Sequence[TrialRecord], selected: TrialRecord, test: TestResult | None
) -> tuple[Repetition, ...]:
    """The finished repetitions of the selected trial, in the order in which the look has evaluated their models."""
    found = [r for r in repetitions if r.repeats == selected.handle and r.status == "finished"]
    found.sort(key=lambda record: record.repetition)
    looked = test.repetitions if test and len(test.repetitions) == len(found) else [None] * len(found)
    return tuple(
        Repetition(
            seed=_seed(home, record),
            validation=record.outcome.metrics["ndcg@10"],
            test=figures,
            seconds=record.outcome.wall_seconds,
        )
        for record, figures in zip(found, looked, strict=True)
        if record.outcome
    )


def _seed(home: Path, trial: TrialRecord) -> int:
    return read_spec(trial_directory(home, trial.session, trial.handle)).seed


def _receipt(home: Path, session: SessionRecord) -> tuple[str, str]:
    """The path of a session's receipt below its home and its SHA-256; empty for a session that has none."""
    try:
        content = to_bytes(receipt_of(home, session))
    except (SessionError, SealError):
        return "", ""
    return f".virtualmle/vault/receipts/{session.id}.json", hashlib.sha256(content).hexdigest()


def other_looks(base: Path, own: Collection[Path], homes: Sequence[Path], dataset_id: str) -> int:
    """Looks at the content of a dataset in the ledgers of those `homes` that are not `own`, e.g. of earlier records.

    Which datasets have this content, `tools/contents.py` tells of the base home; so do equal fingerprints in the
    ledgers. The looks at near-duplicates that a ledger has counted together count as well.
    """
    ledgers = {home: looks(home) for home in homes}
    ids = content_in(base, dataset_id)
    contents = {look.fingerprint for ledger in ledgers.values() for look in looks_at(ledger, ids)}
    ids |= {look.dataset_id for ledger in ledgers.values() for look in ledger if look.fingerprint in contents}
    return sum(len(looks_at(ledger, ids)) for home, ledger in ledgers.items() if home not in own)
