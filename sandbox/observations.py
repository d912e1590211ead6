"""The trials of a session as one vector of measurements and bounds, with its error covariance. Pure numpy.

Two errors are told apart. *Users*: all trials are measured on the same users, so the errors of two means are
correlated; their covariance over users is known and is stored when a trial is recorded (`user_covariances`).
*Training*: a model that is trained again with another seed has another NDCG@10, also in the mean over many users;
trials that share a checkpoint share this error.

A stopped trial has no measurement but two bounds: what it would have measured, with errors like those of any other
trial, lies between them, because training keeps the best epoch and so never ends below what it has reached. Its errors
over users are those of its base plus the median paired error, as for a trial that has not run yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..memory.records import TrialOutcome, TrialRecord
from ..training.metrics import ndcg_per_user
from .sweeping import each_setting

Floats = npt.NDArray[np.float64]

NDCG10 = "ndcg@10"
COVARIANCES = "user_covariances"
"""Key in `TrialOutcome.details`: what `user_covariances` returned when the trial was recorded."""
UNKNOWN_RELATIVE_SE = 0.005  # of a difference to the base that was recorded without a standard error


DEFAULT_PAIRED_ERROR = 0.03  # relative paired error over users before two trials have finished


@dataclass(frozen=True)
class Observations:
    """Finished trials (n) and stopped ones (m), their NDCG@10 (n + m,), and the covariance matrices of its errors.

    ndcg              what the finished trials measured, then the upper bounds of the stopped ones
    floors            the lower bounds of the stopped ones, (m,)
    user_covariance   over users, in units of NDCG@10 squared, (n + m, n + m)
    same_checkpoint   1 where two trials score the same trained model, and therefore share the error of its training
    """

    trials: list[TrialRecord]
    stopped: list[TrialRecord]
    ndcg: Floats
    floors: Floats
    user_covariance: Floats
    same_checkpoint: Floats
    paired_variance: float  # the median over pairs of finished trials, in units of NDCG@10 squared

    @property
    def all_trials(self) -> list[TrialRecord]:
        """The finished trials, then the stopped ones, (n + m)."""
        return [*self.trials, *self.stopped]

    @property
    def reference_ndcg(self) -> float:
        """NDCG@10 of the first measured trial: the unit of relative effects."""
        return max(float(self.ndcg[0]), 1e-9)


def observations(trials: Sequence[TrialRecord]) -> Observations:
    """The finished trials that have NDCG@10, in order, and of a sweep every setting; then the stopped ones.

    A stopped trial whose configuration has finished since is left out, and so are ensembles and students, whose NDCG@10
    says nothing about single knobs. There may be none of either.
    """
    finished = [t for t in measured_models(trials) if t.status == "finished"]
    measured = each_setting(finished)
    stopped = [t for t in still_stopped(trials) if not t.uses_models]
    hashes = np.array([t.train_hash for t in [*measured, *stopped]])
    users = _with_settings(finished, measured, _user_covariance(finished))
    ndcg = [_outcome(t).metrics[NDCG10] for t in measured]
    paired = _paired_variance(users, ndcg[0] if ndcg else 0.0)
    return Observations(
        trials=measured,
        stopped=stopped,
        ndcg=np.array([*ndcg, *(t.bound for t in stopped)], dtype=np.float64),
        floors=np.array([t.floor for t in stopped]),
        user_covariance=_with_stopped(measured, stopped, users, paired),
        same_checkpoint=(hashes[:, None] == hashes[None, :]).astype(np.float64),
        paired_variance=paired,
    )


def measured_models(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials with NDCG@10 that used no models of others: neither ensembles nor students."""
    return [t for t in trials if not t.uses_models and t.outcome and NDCG10 in t.outcome.metrics]


def still_stopped(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The stopped trials with a bound, without those whose configuration another trial has measured or stopped too."""
    measured = [t.config for t in trials if t.status == "finished"]
    last = {repr(t.config): t for t in trials if t.bound is not None}
    return [trial for trial in last.values() if trial.config not in measured]


def user_covariances(
    handle: str, ranks: npt.NDArray[np.int32], others: Mapping[str, npt.NDArray[np.int32]]
) -> dict[str, float]:
    """Covariance over users of the mean NDCG@10 of a trial with those of others, and with itself (its variance).

    cov(mean_i, mean_j) = sum over users of (x_i - mean_i)(x_j - mean_j) / (n (n - 1)); all ranks are (n,), n >= 2.
    """
    own = _centred(ranks)
    scale = own.size * (own.size - 1)
    found = {other: float(own @ _centred(theirs)) / scale for other, theirs in others.items()}
    return found | {handle: float(own @ own) / scale}


def _centred(ranks: npt.NDArray[np.int32]) -> Floats:
    gains = ndcg_per_user(ranks)
    return np.asarray(gains - gains.mean())


def _user_covariance(trials: list[TrialRecord]) -> Floats:
    """The stored covariances; if a pair is missing (an older version recorded it), paired errors stand in for all."""
    covariance = np.zeros((len(trials), len(trials)))
    for i, trial in enumerate(trials):
        stored = _outcome(trial).details.get(COVARIANCES, {})
        for j, other in enumerate(trials[: i + 1]):
            if other.handle not in stored:
                return _from_paired_errors(trials)
            covariance[i, j] = covariance[j, i] = stored[other.handle]
    return covariance


def _from_paired_errors(trials: list[TrialRecord]) -> Floats:
    """Error covariance if only each trial's paired error against its base is known.

    Differences to a base are taken as independent given the base: e_i = e_base + d_i with Var d_i = base_delta_se^2.
    """
    covariance = np.zeros((len(trials), len(trials)))
    row_of: dict[str, int] = {}
    for i, trial in enumerate(trials):
        outcome = _outcome(trial)
        base = row_of.get(trial.base)
        se = outcome.base_delta_se
        if base is None or outcome.base_delta is None:
            covariance[i, i] = (outcome.ndcg_se or UNKNOWN_RELATIVE_SE * outcome.metrics[NDCG10]) ** 2 if i else 0.0
        else:
            covariance[i, :i] = covariance[:i, i] = covariance[base, :i]
            step = UNKNOWN_RELATIVE_SE * outcome.metrics[NDCG10] if se is None else se
            covariance[i, i] = covariance[base, base] + step**2
        row_of[trial.handle] = i
        if trial.base == "default" and not trial.changes:
            row_of.setdefault("default", i)
    return covariance


def _with_settings(finished: list[TrialRecord], measured: list[TrialRecord], covariance: Floats) -> Floats:
    """Extend the covariance of the trials to the settings of sweeps that were not chosen.

    Of these, only the paired error against the base is stored: e = e_base + d with Var d = se^2, independently.
    """
    if len(finished) == len(measured):
        return covariance
    row_of = {trial.handle: row for row, trial in enumerate(finished)}
    default = next((r for r, t in enumerate(finished) if t.base == "default" and not t.changes), 0)
    rows, own = [], np.zeros(len(measured))
    for number, trial in enumerate(measured):
        chosen = finished[row_of[trial.handle]]
        rows.append(row_of[trial.handle] if trial.config == chosen.config else row_of.get(trial.base, default))
        own[number] = 0.0 if trial.config == chosen.config else (_outcome(trial).base_delta_se or 0.0) ** 2
    return covariance[np.ix_(rows, rows)] + np.diag(own)


def _paired_variance(users: Floats, first_ndcg: float) -> float:
    """The median variance over users of the difference of two finished trials; a usual one before there are two."""
    own = np.diag(users)
    pairs = (own[:, None] + own[None, :] - 2 * users)[np.triu_indices(len(own), 1)]
    return float(np.median(pairs)) if pairs.size else (DEFAULT_PAIRED_ERROR * first_ndcg) ** 2


def _with_stopped(
    measured: list[TrialRecord], stopped: list[TrialRecord], users: Floats, paired_variance: float
) -> Floats:
    """Extend the covariance of the finished trials to stopped ones: e = e_base + d with Var d = paired_variance."""
    if not stopped or not measured:
        return users
    row_of = {trial.handle: row for row, trial in enumerate(measured)}
    default = next((r for r, t in enumerate(measured) if t.base == "default" and not t.changes), 0)
    rows = [*range(len(measured)), *(row_of.get(trial.base, default) for trial in stopped)]
    own = np.zeros(len(rows))
    own[len(measured) :] = paired_variance
    return users[np.ix_(rows, rows)] + np.diag(own)


def _outcome(trial: TrialRecord) -> TrialOutcome:
    assert trial.outcome is not None  # only measured trials are observed
    return trial.outcome
