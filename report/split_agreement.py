"""Which split a session's dataset has, and whether other splits of the same log put the configurations in this order.

Leave-one-out trains on events that are later than its targets, so it may order models differently than a split by time
(Gusak et al., "Time to Split", RecSys 2025). Only validation figures are compared.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.catalogue import Catalogue
from ..data.errors import DataError
from ..data.prepared import LEAVE_ONE_OUT, Manifest
from ..data.wording import counted
from ..memory.records import SessionRecord
from ..memory.store import Memory
from ..sandbox.statistics import kendall_tau

MIN_COMMON = 5  # configurations; with fewer, tau is hardly ever far from its value for a random order
LOW_TAU = 0.5  # three of four pairs are in the same order


@dataclass(frozen=True)
class Agreement:
    """The order of the configurations that were measured under two splits of one log."""

    dataset: str  # the other dataset
    split: str  # of the other dataset
    configurations: int  # measured under both splits
    tau: float | None  # Kendall's tau-b of validation NDCG@10; None for fewer than MIN_COMMON configurations

    @property
    def is_low(self) -> bool:
        """Whether the two splits disagree so much that the choice of a configuration depends on the split."""
        return self.tau is not None and self.tau < LOW_TAU

    @property
    def sentence(self) -> str:
        """The comparison in a sentence, as a warning if the order differs."""
        other = f"dataset {self.dataset} ({self.split})"
        if self.tau is None:
            common = counted(self.configurations, "configuration")
            return f"{common} measured on {other}, the same log, too: the order is compared from {MIN_COMMON} on."
        figures = f"Kendall's tau of {self.configurations} configurations is {self.tau:+.2f}"
        if self.is_low:
            return (
                f"Warning: {other} orders the configurations of this log differently ({figures}), so which one is best "
                "depends on the split. The split by time is closer to use in production."
            )
        return f"On {other} the order of the configurations is similar: {figures}."


def split_of(session: SessionRecord) -> str:
    """The split of a session's dataset, as its profile says: `leave-one-out`, or `time, hold-out 30d`."""
    return _split_named_in(session.profile)


def targets_of(session: SessionRecord) -> str:
    """Which events are the targets of a session's dataset, and whether ties decide by chance, in sentences."""
    drawn = " The order of a user's events at one time was drawn at random." if "ties" in session.profile else ""
    return _targets_of_split(session) + drawn


def _targets_of_split(session: SessionRecord) -> str:
    if split_of(session) == LEAVE_ONE_OUT:
        return "Leave-one-out: the last event of each user is the test target, the one before it the validation target."
    return (
        f"Split by time ({split_of(session)}): a user's validation target is the first event between the two cuts, the "
        "test target the first event after the second one. Users without a target, or without an earlier event, are "
        "trained on but not ranked."
    )


def _split_named_in(profile: Mapping[str, Any]) -> str:
    return str(profile.get("split", LEAVE_ONE_OUT))


def agreements(home: Path, memory: Memory, session: SessionRecord) -> list[Agreement]:
    """The comparison with every other split of the session's log in `home` that has sessions of the same backbone."""
    here = _measured(memory, session.dataset_id, session.backbone)
    found = []
    for other in _siblings(home, session):
        there = _measured(memory, other.dataset_id, session.backbone)
        if there and _split_named_in(other.profile) != split_of(session):
            found.append(_agreement(other, here, there))
    return found


def _siblings(home: Path, session: SessionRecord) -> list[Manifest]:
    """The datasets that were made from the same log; none if the session's dataset is gone, or the vault unreadable."""
    catalogue = Catalogue(home)
    try:
        if catalogue.manifest(session.dataset).dataset_id != session.dataset_id:
            return []
        return [catalogue.manifest(name) for name in catalogue.siblings(session.dataset)]
    except (DataError, PermissionError):
        return []


def _measured(memory: Memory, dataset_id: str, backbone: str) -> dict[str, float]:
    """The mean validation NDCG@10 of every configuration that finished on a dataset, by its hash."""
    values: dict[str, list[float]] = {}
    for session in memory.sessions.all():
        if (session.dataset_id, session.backbone) == (dataset_id, backbone):
            for config_hash, value in _finished(memory, session.id):
                values.setdefault(config_hash, []).append(value)
    return {config_hash: sum(each) / len(each) for config_hash, each in values.items()}


def _finished(memory: Memory, session: str) -> Iterable[tuple[str, float]]:
    for trial in memory.trials.all(session):
        if trial.status == "finished" and trial.outcome:
            yield trial.config_hash, trial.outcome.metrics["ndcg@10"]


def _agreement(other: Manifest, here: dict[str, float], there: dict[str, float]) -> Agreement:
    common = sorted(here.keys() & there.keys())
    enough = len(common) >= MIN_COMMON
    tau = kendall_tau([here[key] for key in common], [there[key] for key in common]) if enough else None
    return Agreement(other.name, _split_named_in(other.profile), len(common), tau)
