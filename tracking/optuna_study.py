"""A session as a study in an Optuna storage, which optuna-dashboard shows.

Parameters have the distributions of the session's action space. A trial that racing has stopped is PRUNED, one that
crashed or was cancelled FAIL. Its user attribute `trial` finds a trial again.
"""

from collections.abc import Sequence
from datetime import datetime

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, OptunaError
from optuna.storages import BaseStorage, get_storage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from ..data.errors import TrackingError
from ..sandbox.action_space import Knob
from .snapshot import Snapshot, TrackedTrial
from .tracker import Tracker

optuna.logging.set_verbosity(optuna.logging.ERROR)
STATES = {
    "running": TrialState.RUNNING,
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "crashed": TrialState.FAIL,
    "cancelled": TrialState.FAIL,
}
TRIAL = "trial"


class OptunaTracker(Tracker):
    """A study per session in the storage at `url`, e.g. sqlite:///studies.db."""

    def __init__(self, url: str) -> None:
        try:
            self.target = f"Optuna storage {make_url(url).render_as_string(hide_password=True)}"
        except SQLAlchemyError:
            raise TrackingError(f"optuna={url!r:.60} is not a database URL; write e.g. sqlite:///studies.db") from None
        self._url = url
        self._storage: BaseStorage | None = None

    def sync(self, snapshot: Snapshot) -> None:
        """Add the missing trials and values, and end the trials that have ended."""
        try:
            self._storage = self._storage or get_storage(self._url)
            _sync(self._storage, snapshot)
        except (OptunaError, SQLAlchemyError, ImportError, OSError) as error:
            reason = " ".join(str(error).split())
            raise TrackingError(f"{self.target} cannot be written: {reason:.200}") from None


def _sync(storage: BaseStorage, snapshot: Snapshot) -> None:
    study = _study(storage, snapshot.name)
    known = {trial.user_attrs.get(TRIAL): trial for trial in storage.get_all_trials(study, deepcopy=False)}
    distributions = distributions_of(snapshot.knobs)
    for trial in snapshot.trials:
        recorded = known.get(trial.handle)
        if recorded is None and trial.knobs is not None:
            storage.create_new_trial(study, frozen_trial(trial, distributions))
        elif recorded is not None and not recorded.state.is_finished():
            _update(storage, recorded, trial)
    before = storage.get_study_user_attrs(study)
    for name, text in (snapshot.tags | snapshot.test).items():
        if before.get(name) != text:
            storage.set_study_user_attr(study, name, text)


def _study(storage: BaseStorage, name: str) -> int:
    """The id of the study, which is created if there is none."""
    try:
        return storage.create_new_study([StudyDirection.MAXIMIZE], name)
    except DuplicatedStudyError:
        return storage.get_study_id_from_name(name)


def _update(storage: BaseStorage, recorded: FrozenTrial, trial: TrackedTrial) -> None:
    """Bring a running trial of the study up to date."""
    number = recorded._trial_id  # the id in the storage, which Optuna's own classes use like this
    for epoch, value in trial.series.get("model_ndcg_at_10", ()):
        if epoch not in recorded.intermediate_values:
            storage.set_trial_intermediate_value(number, epoch, value)
    if trial.is_over:
        for name, entry in _attributes(trial).items():
            storage.set_trial_user_attr(number, name, entry)
        values = None if trial.value is None else [trial.value]
        storage.set_trial_state_values(number, STATES[trial.status], values)


def frozen_trial(trial: TrackedTrial, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial as Optuna stores it."""
    knobs = trial.knobs or {}
    return FrozenTrial(
        number=-1,  # the storage assigns both numbers
        trial_id=-1,
        state=STATES[trial.status],
        value=trial.value,
        datetime_start=datetime.fromtimestamp(trial.started),
        datetime_complete=datetime.fromtimestamp(trial.ended) if trial.ended else None,
        params={name: value for name, value in knobs.items() if name in distributions},
        distributions={name: distributions[name] for name in knobs if name in distributions},
        user_attrs=_attributes(trial),
        system_attrs={},
        intermediate_values=dict(trial.series.get("model_ndcg_at_10", ())),
    )


def _attributes(trial: TrackedTrial) -> dict[str, object]:
    ensemble = (trial.knobs or {}).get("ensemble")
    return {**trial.tags, **trial.figures, **({"ensemble": ensemble} if ensemble else {})}


def distributions_of(knobs: Sequence[Knob]) -> dict[str, BaseDistribution]:
    """The distributions of knobs by name. One that names trials has none: its choices grow with the session."""
    return {knob.name: distribution_of(knob) for knob in knobs if knob.type != "trials"}


def distribution_of(knob: Knob) -> BaseDistribution:
    """The distribution of a knob; the values of one with levels are choices, so that a chart shows them as they are."""
    if knob.type == "bool":
        return CategoricalDistribution((False, True))
    if knob.choices or knob.levels:
        return CategoricalDistribution(knob.choices or knob.levels)
    assert knob.low is not None and knob.high is not None  # every other knob is a number with a range
    log = knob.scale == "log" and knob.low > 0
    if knob.type == "int":
        return IntDistribution(int(knob.low), int(knob.high), log=log)
    return FloatDistribution(float(knob.low), float(knob.high), log=log)
