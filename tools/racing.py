"""The race of a trial: what the worker needs to stop it early, written to the trial's directory before it starts.

Not raced, and so run to their end: trials that are not trained, repetitions, and trials for which
`training/families.py` knows too little. The continuation of a trial that was stopped or ended on request, and a trial
of a session without racing, is not stopped either; its worker only reports that it will not be kept, as far as it knows
the judged ranks. docs/racing.md explains the rule.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ..data.errors import MachineError, TrialError
from ..memory.records import CurveRecord, SessionRecord, TrialRecord
from ..memory.similarity import UNKNOWN
from ..models.config import TrialConfig, has_priors, scoring_part
from ..training.epoch_ranks import EpochRanks, read_epoch_ranks, read_ranks, write_race
from ..training.families import Run, race_of
from ..training.spec import EPOCH_RANKS, JUDGED_RANKS, RANKS, TrialSpec
from ..training.stopping import judged_epochs
from .signatures import check_files
from .workspace import Workspace

logger = logging.getLogger(__name__)


def prepare_race(ws: Workspace, session: SessionRecord, trial: TrialRecord, spec: TrialSpec, directory: Path) -> None:
    """Write the race of a trial into its new directory, if it is to be raced. MachineError if it cannot be written."""
    incumbent = ws.memory.trials.incumbent(session.id)
    trials = ws.memory.trials.all(session.id)
    if incumbent is None or spec.rescore_from or spec.members or trial.sweep or trial.repetition:
        return
    known = _run_of(session, incumbent)
    if known is None:
        return
    folder = ws.trial_directory(session.id, incumbent.handle)
    same_scores = _have_same_scores(folder, known.config, trial.configuration)
    judged = same_scores and has_priors(known.config)
    epochs = judged_epochs(known.epochs) if judged else list(known.epochs)
    try:
        check_files(ws, incumbent, RANKS, EPOCH_RANKS, JUDGED_RANKS)
    except TrialError as error:
        logger.warning("%s is not raced: %s", trial.handle, error)
        return
    ranks = _incumbent_ranks(folder, len(epochs), judged=judged)
    if ranks is None:
        return  # the incumbent was trained by an earlier version, or its files are lost
    runs = [*_runs_here(session, trials), *_runs_elsewhere(ws, session)]
    keep_z = ws.session_protocol(session).keep_z
    popularity = incumbent.outcome.details.get("popularity_ndcg10") if incumbent.outcome else None
    context = race_of(trial.configuration, known.num_users, known, runs, keep_z, popularity or 0.0, same_scores, epochs)
    if context is None:
        return
    stops = _may_be_stopped(ws, session, trial, trials)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_race(directory, context.model_copy(update={"stops": stops}), ranks)
    except OSError as error:
        raise MachineError(f"{directory} cannot be written ({error.strerror}); free disk space and retry") from None


def _have_same_scores(folder: Path, incumbent: TrialConfig, candidate: TrialConfig) -> bool:
    """Whether the judged ranks of the incumbent's epochs are there and are of the candidate's scores.

    The epochs of a sweep or a re-scoring are those of a training with other scores, and are not judged.
    """
    if not has_priors(candidate):
        return not has_priors(incumbent)
    return scoring_part(incumbent) == scoring_part(candidate) and (folder / JUDGED_RANKS).exists()


def _incumbent_ranks(folder: Path, num_rows: int, *, judged: bool) -> EpochRanks | None:
    """The incumbent's ranks as `decide` takes them, from its folder; None if they are not there."""
    rows, final = read_epoch_ranks(folder / (JUDGED_RANKS if judged else EPOCH_RANKS)), read_ranks(folder)
    if rows is None or final is None or rows.shape != (num_rows, len(final)):
        return None
    return np.vstack([rows, final])


def _may_be_stopped(
    ws: Workspace, session: SessionRecord, trial: TrialRecord, trials: Sequence[TrialRecord]
) -> bool:
    """Whether the rules of the session, which has these `trials`, allow to stop this one."""
    if not ws.session_protocol(session).racing:
        return False
    begun = [other for other in trials if other.status == "stopped" or other.ended_after is not None]
    return not any(other.train_hash == trial.train_hash for other in begun)


def _runs_here(session: SessionRecord, trials: Sequence[TrialRecord]) -> list[Run]:
    """The models that this session has trained to their end."""
    complete = [trial for trial in trials if trial.status == "finished" and trial.ended_after is None]
    trained = {trial.train_hash: trial for trial in complete}
    return [run for trial in trained.values() if (run := _run_of(session, trial))]


def _run_of(session: SessionRecord, trial: TrialRecord) -> Run | None:
    outcome = trial.outcome
    if outcome is None or not outcome.curve:
        return None
    return Run(
        source=trial.handle,
        config=trial.configuration,
        epochs=[epoch["epoch"] for epoch in outcome.curve],
        ndcg10=[epoch["ndcg10"] for epoch in outcome.curve],
        num_users=session.profile.get("users", 1),
        parameters=outcome.parameters,
    )


def _runs_elsewhere(ws: Workspace, session: SessionRecord) -> list[Run]:
    """The models that closed sessions with this backbone have trained to their end; none without memory."""
    if not session.with_memory:
        return []
    knowledge = ws.memory.knowledge(session.memory_from)
    similar = knowledge.similarities(session.profile, session.dataset_id)
    found = []
    for curve in knowledge.curves(session.backbone):
        same = curve.dataset_id == session.dataset_id
        run = _remembered(curve, 1.0 if same else min(similar.get(curve.dataset_id, UNKNOWN), 0.999))
        found += [run] if run else []
    return found


def _remembered(curve: CurveRecord, similarity: float) -> Run | None:
    """The run of a remembered curve; None if its configuration is of an engine with other knobs."""
    try:
        config = TrialConfig(**curve.config)
    except ValidationError:
        return None
    return Run(
        source=f"{curve.session}/{curve.trial}",
        config=config,
        epochs=curve.epochs,
        ndcg10=curve.ndcg10,
        num_users=curve.users,
        similarity=similarity,
        dataset=curve.dataset_id,
    )
