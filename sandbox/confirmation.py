"""The confirmation of a session's best trials: which of them is best under fresh seeds. Pure.

The best of many trials is partly the luckiest one: its seed and the validation users favoured it. Repetitions under
fresh seeds measure the candidates again, so that the luck of the seed does not decide the selection. The luck of the
validation users remains, as all repetitions are measured on the same users.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..memory.records import ConfirmedTrial
from ..training.metrics import ndcg_per_user
from .statistics import z_score

Floats = npt.NDArray[np.float64]


def confirmed_trials(
    before: Mapping[str, float], ranks: Mapping[str, Sequence[npt.NDArray[Any]]], failures: Mapping[str, str]
) -> list[ConfirmedTrial]:
    """The candidates, best mean first; of equal ones, the one that was better before. Failed ones come last.

    before: trial -> its validation NDCG@10, best first. ranks: trial -> the ranks (num_users,) of each repetition.
    failures: trial -> why a repetition of it did not finish.
    """
    users = {trial: np.mean([ndcg_per_user(each) for each in found], axis=0) for trial, found in ranks.items()}
    order = sorted(users, key=lambda trial: (-float(users[trial].mean()), -before[trial]))
    found = [_measured(trial, before[trial], ranks[trial], users, order[0]) for trial in order]
    return found + [ConfirmedTrial(trial=t, ndcg10=before[t], failed=failures[t]) for t in before if t in failures]


def _measured(
    trial: str, before: float, ranks: Sequence[npt.NDArray[Any]], users: Mapping[str, Floats], best: str
) -> ConfirmedTrial:
    values = [float(ndcg_per_user(each).mean()) for each in ranks]
    difference = users[trial] - users[best]
    is_best = trial == best
    return ConfirmedTrial(
        trial=trial,
        ndcg10=before,
        values=values,
        mean=float(np.mean(values)),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        delta=None if is_best else float(difference.mean()),
        se=None if is_best else float(difference.std(ddof=1) / math.sqrt(len(difference))),
    )


def reason_of(trials: Sequence[ConfirmedTrial], repetitions: int) -> str:
    """What is selected and why, for `trials` as `confirmed_trials` returns them."""
    measured = [trial for trial in trials if not trial.failed]
    failed = "".join(f" {trial.trial} was not confirmed: {trial.failed}." for trial in trials if trial.failed)
    if not measured:
        return f"No trial could be confirmed; the best validation NDCG@10 decides.{failed}"
    best = measured[0]
    seeds = "1 fresh seed" if repetitions == 1 else f"{repetitions} fresh seeds"
    spread = "" if best.sd is None else f" ± {best.sd:.4f}"
    text = f"{best.trial} has the best mean NDCG@10 over {seeds}: {best.mean:.4f}{spread}."
    leader = max(measured, key=lambda trial: trial.ndcg10)
    rival = leader if leader is not best else next(iter(measured[1:]), None)
    if rival is not None and rival.delta is not None and rival.se is not None:
        first = "the best before" if rival is leader else "the next"
        paired = f"{rival.delta:+.4f} ± {rival.se:.4f} (z {z_score(rival.delta, rival.se):+.1f}, paired over users)"
        text += f" {rival.trial}, {first}, differs by {paired}."
    return text + failed
