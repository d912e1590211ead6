"""What a trial will take, before it runs: seconds and memory, each with the measurement that it rests on. Pure."""

import statistics
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..memory.records import SessionRecord, TrialRecord
from ..models.config import TrialConfig
from .costs import Cost, estimate_cost

ADAM_BYTES = 16  # of a float32 weight with its gradient and the two moments of Adam
TAUGHT_BYTES = 256  # of a train event: the items that its teachers predict, with their shares
MEGABYTE = 1 << 20


class Estimate(BaseModel):
    """What a trial is expected to take, good to about a factor of two; None where nothing was measured."""

    model_config = ConfigDict(frozen=True)

    seconds: float | None = Field(default=None, description="training seconds charged to the budget")
    wall_seconds: float | None = Field(default=None, description="with the start of the process")
    memory_mb: int | None = Field(default=None, description="main memory of the process at its peak")
    basis: str = Field(description="the measurements it rests on, or why there is none")


def estimate_of(
    config: TrialConfig, session: SessionRecord, trials: Sequence[TrialRecord], elsewhere: Sequence[TrialRecord] = ()
) -> Estimate:
    """The estimate for a configuration from the `trials` of its session, or else from those of other sessions.

    elsewhere: trials as `scaled_to` returns them. Seconds are measured epochs, scaled by `costs.relative_cost` to the
    knobs of the configuration, times the epochs that the nearest finished trial ran; the predictions of teachers, which
    are made before the first epoch, are not counted. Memory is the largest peak that the nearest trial has reached,
    with the difference of the two item tables in training (weights, gradient and the moments of Adam), and of what the
    teachers predicted; activations of a larger batch and the memory of a GPU are not counted.
    """
    cost = estimate_cost(config, trials, session.profile.get("items"), elsewhere)
    memory, memory_basis = _memory(config, session, trials, elsewhere)
    if cost is None:
        return Estimate(memory_mb=memory, basis="; ".join([_unknown(trials), *memory_basis]))
    start = _start_seconds(trials) or _start_seconds(elsewhere)
    return Estimate(
        seconds=_rounded(cost.seconds),
        wall_seconds=None if start is None else _rounded(cost.seconds + start),
        memory_mb=memory,
        basis="; ".join([_in_words(cost), *memory_basis]),
    )


def scaled_to(session: SessionRecord, other: SessionRecord, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The finished trials of another session, with the seconds of their epochs scaled to the data of `session`.

    An epoch passes over all interactions once, so its seconds grow with their number. Nothing else of them changes.
    """
    here, there = session.profile.get("interactions"), other.profile.get("interactions")
    factor = 1.0 if session.dataset_id == other.dataset_id else here / there if here and there else 0.0
    return [_with_epochs(trial, factor) for trial in trials if factor and trial.status == "finished"]


def _with_epochs(trial: TrialRecord, factor: float) -> TrialRecord:
    assert trial.outcome is not None  # it has finished
    names = ("train_seconds", "evaluate_seconds")
    curve: list[dict[str, Any]] = [
        {**epoch, **{name: epoch.get(name, 0.0) * factor for name in names}} for epoch in trial.outcome.curve
    ]
    return trial.model_copy(update={"outcome": trial.outcome.model_copy(update={"curve": curve})})


def _unknown(trials: Sequence[TrialRecord]) -> str:
    if any(trial.status == "finished" for trial in trials):
        return "seconds: unknown, the epochs of no trial were measured"
    return "seconds: unknown, no trial has finished here or in a similar session"


def _in_words(cost: Cost) -> str:
    if not cost.source:
        return "seconds: only scores again, as long as re-scorings or evaluations took in this session"
    begun = f" ({cost.begun} more are trained already)" if cost.begun else ""
    return f"seconds: {cost.epochs} epochs{begun}, scaled from those of {cost.source}"


def _start_seconds(trials: Sequence[TrialRecord]) -> float | None:
    """The median of what trials took beyond the seconds that were charged: the start of the process, and loading."""
    ended = [trial.outcome for trial in trials if trial.status == "finished" and trial.outcome]
    beyond = [o.wall_seconds - o.train_seconds for o in ended if o.wall_seconds and not o.details.get("reused_from")]
    return max(0.0, statistics.median(beyond)) if beyond else None


def _memory(
    config: TrialConfig, session: SessionRecord, trials: Sequence[TrialRecord], elsewhere: Sequence[TrialRecord]
) -> tuple[int | None, list[str]]:
    """Megabytes and what they count; those of other data are not comparable, because the data are loaded as well."""
    items = session.profile.get("items")
    known = [t for t in (*trials, *elsewhere) if t.outcome and t.outcome.details.get("peak_bytes")]
    here = [t for t in known if t.session == session.id or t.config["backbone"] == config.backbone]
    if not here or not items:
        return None, ["memory: unknown, the peak of no trial was measured"]
    nearest = min(here, key=lambda t: (t.session != session.id, abs(t.config["hidden_dim"] - config.hidden_dim)))
    assert nearest.outcome is not None  # it has details
    more = max(0, config.hidden_dim - nearest.config["hidden_dim"]) * items * ADAM_BYTES
    name = nearest.handle if nearest.session == session.id else f"{nearest.session}/{nearest.handle}"
    table = f" + {more / MEGABYTE:.0f} MB for the wider item table" if more >= MEGABYTE else ""
    if config.teachers and not nearest.config.get("teachers"):
        taught = session.profile.get("interactions", 0) * TAUGHT_BYTES
        more, table = more + taught, f"{table} + {taught / MEGABYTE:.0f} MB for what the teachers predict"
    peak = nearest.outcome.details["peak_bytes"]
    return round((peak + more) / MEGABYTE), [f"memory: peak of {name}{table}; not that of a GPU"]


def _rounded(seconds: float) -> float:
    """Two significant digits: an estimate is no more exact."""
    return float(f"{seconds:.2g}")
