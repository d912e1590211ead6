"""The trials that another trial names, as members of its ensemble or as its teachers: which may be one now, and
whether their models are still there.

Such a trial is a finished one of this session or of another session of this home on the same data, of either backbone,
whose model was trained: neither an ensemble itself nor replayed. Two of them never share a trained model. A session
without memory, or with a memory that leaves out its own dataset, may only use trials of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.errors import ConfigError, SessionError, TrialError
from ..memory.records import SessionRecord, TrialRecord
from ..models.config import TrialConfig, teachers_of
from ..models.knobs.trial_names import ENSEMBLE, NAMING, TEACHERS, names_in
from ..training.member_files import beside, check_checkpoint
from ..training.signature import check_trial
from ..training.spec import CHECKPOINT, RESULT, USERS, NamedModel, read_spec
from .cognition import best_first
from .signatures import check_files
from .workspace import Workspace

NUM_NAMED = 8
"""How many possible members an error names."""


def with_short_names(session: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes of a trial; where they name trials, those of the session itself have their handles alone."""
    changes, own = dict(changes), f"{session}/"
    for knob in changes.keys() & NAMING.keys():
        given = changes[knob]
        names = names_in(given) if isinstance(given, str) else given
        if isinstance(names, list | tuple):
            changes[knob] = [name.removeprefix(own) if isinstance(name, str) else name for name in names]
    return changes


def members_for(ws: Workspace, session: SessionRecord, config: TrialConfig) -> list[NamedModel]:
    """What the worker needs to know of the members of `config`, in its order; [] if it is no ensemble.

    ConfigError if one of them is no trial that may be a member, or if two share a trained model; the text names trials
    that may be members now.
    """
    return _models_for(ws, session, ENSEMBLE, names_in(config.ensemble))


def teachers_for(
    ws: Workspace, session: SessionRecord, config: TrialConfig, trained: Path | None
) -> list[NamedModel]:
    """What the worker needs to know of the teachers of `config`, in its order; ConfigError as of `members_for`.

    trained: the directory of a trial of the session that has trained this model, with the teachers that it had; they
    may be gone by now, because nothing is trained again.
    """
    if trained is not None:
        return beside(trained, read_spec(trained).teachers)
    return _models_for(ws, session, TEACHERS, teachers_of(config))


def _models_for(ws: Workspace, session: SessionRecord, knob: str, names: Sequence[str]) -> list[NamedModel]:
    found, models = [], dict[tuple[str, int | None, int], str]()
    for name in names:
        owner, trial = _find(ws, session, knob, name)
        if why := _why_not(ws, session, knob, owner, trial):
            raise ConfigError(f"{knob}: {name} {why}; {_possible(ws, session, knob)}")
        model = _model(ws, knob, trial)
        if model in models:
            raise ConfigError(
                f"{knob}: {models[model]} and {name} share one trained model, so they would count twice; leave one "
                f"out; {_possible(ws, session, knob)}"
            )
        models[model] = name
        found.append(_named_model(ws, name, trial))
    return found


def members_in(ws: Workspace, ensemble: TrialRecord) -> list[TrialRecord]:
    """The trials that an ensemble scores together, in the order of its configuration. SessionError if one is gone."""
    found = []
    for name in names_in(ensemble.configuration.ensemble):
        owner, _, handle = name.rpartition("/")
        found.append(ws.memory.trials.get(owner or ensemble.session, handle))
    return found


def check_model(ws: Workspace, selected: TrialRecord, directory: Path) -> None:
    """Raise SessionError if the examiner would refuse the model of the selected trial, which is in `directory`.

    It must be as its worker has signed it; of an ensemble, these are the models of its members, as they were when the
    ensemble was scored.
    """
    if not selected.is_ensemble and not (directory / CHECKPOINT).exists():
        raise SessionError(
            f"{directory / CHECKPOINT} is missing, and {selected.handle} cannot be evaluated without it; restore it"
        )
    try:
        key = ws.session_key(selected.session)
        check_trial(directory, key, selected.session, directory.name, names=(RESULT, CHECKPOINT))
        for member in beside(directory, read_spec(directory).members):
            check_checkpoint(member)
    except TrialError as error:
        raise SessionError(f"{selected.handle} cannot be evaluated: {error}") from None


def _find(ws: Workspace, session: SessionRecord, knob: str, name: str) -> tuple[SessionRecord, TrialRecord]:
    owner, _, handle = name.rpartition("/")
    try:
        record = ws.memory.sessions.get(owner) if owner else session
        return record, ws.memory.trials.get(record.id, handle)
    except SessionError as error:
        raise ConfigError(f"{knob}: {error}; {_possible(ws, session, knob)}") from None


def obstacle(ws: Workspace, session: SessionRecord, owner: SessionRecord, trial: TrialRecord) -> str:
    """Why no trial of the session may use the model of `trial`, as the end of a sentence; empty if they may."""
    return _foreign(session, owner) or _unfit(owner, trial) or _lost(ws, trial)


def _why_not(ws: Workspace, session: SessionRecord, knob: str, owner: SessionRecord, trial: TrialRecord) -> str:
    """`obstacle`, and what keeps a trial from being a teacher if `knob` is that."""
    return obstacle(ws, session, owner, trial) or (_unfit_to_teach(trial) if knob == TEACHERS else "")


def _foreign(session: SessionRecord, owner: SessionRecord) -> str:
    if owner.id != session.id and not may_look_elsewhere(session):
        return "belongs to another session, and this one may not use what others learnt on its dataset"
    return "" if owner.dataset_id == session.dataset_id else f"was trained on other data ({owner.dataset})"


def _unfit(owner: SessionRecord, trial: TrialRecord) -> str:
    if trial.is_ensemble:
        return f"is an ensemble itself; name its members ({', '.join(names_in(trial.configuration.ensemble))})"
    if trial.status == "stopped":
        return "was stopped early and has no model; run its configuration again to finish it"
    if trial.status != "finished":
        return f"is {trial.status}" + (": wait_trial for it first" if trial.status == "running" else "")
    return "was replayed from a table and has no model" if owner.replay else ""


def _unfit_to_teach(trial: TrialRecord) -> str:
    causal = trial.configuration.causal
    return "" if causal else "was trained with causal=false, so that it sees the events that it would have to predict"


def _lost(ws: Workspace, trial: TrialRecord) -> str:
    if not (ws.trial_directory(trial.session, trial.handle) / CHECKPOINT).exists():
        return "has lost its checkpoint"
    try:
        check_files(ws, trial, CHECKPOINT, USERS)
    except TrialError as error:
        return f"cannot be scored ({error})"
    return ""


def may_look_elsewhere(session: SessionRecord) -> bool:
    """Whether a session may use trials of other sessions on its dataset."""
    return session.with_memory and (not session.memory_from or session.dataset in session.memory_from)


def _named_model(ws: Workspace, name: str, trial: TrialRecord) -> NamedModel:
    directory = ws.trial_directory(trial.session, trial.handle).resolve()
    signed = check_files(ws, trial, CHECKPOINT, USERS).files
    files = {name: signed[name] for name in (CHECKPOINT, USERS) if name in signed}
    return NamedModel(name=name, directory=str(directory), files=files)


def _model(ws: Workspace, knob: str, trial: TrialRecord) -> tuple[str, int | None, int]:
    """What identifies a trained model on this data: its training knobs, where it was ended on request, and its seed."""
    try:
        return trial.train_hash, trial.ended_after, read_spec(ws.trial_directory(trial.session, trial.handle)).seed
    except TrialError as error:
        raise ConfigError(f"{knob}: {trial.session}/{trial.handle}: {error}") from None


def _possible(ws: Workspace, session: SessionRecord, knob: str) -> str:
    """Names the trials that may be named now, the best first, one for each trained model."""
    names = list(_names(ws, session, knob, [session]))
    if may_look_elsewhere(session):
        others = [other for other in ws.memory.sessions.all() if other.dataset_id == session.dataset_id]
        names += _names(ws, session, knob, [other for other in others if other.id != session.id])
    if not names:
        return "no trial may be named yet: train one first"
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return f"possible now: {', '.join(names[:NUM_NAMED])}{more}"


def _names(ws: Workspace, session: SessionRecord, knob: str, owners: Sequence[SessionRecord]) -> Iterator[str]:
    for owner in owners:
        seen: set[tuple[str, int | None]] = set()
        for trial in best_first(ws.memory.trials.all(owner.id)):
            model = (trial.train_hash, trial.ended_after)
            if model not in seen and not _why_not(ws, session, knob, owner, trial):
                seen.add(model)
                yield trial.handle if owner.id == session.id else f"{owner.id}/{trial.handle}"
