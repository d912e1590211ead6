"""The result of an evaluation on later data: figures with intervals, for people and for programs. Without torch.

Every user counts once: a user's value is the mean over the user's targets, and a figure is the mean over users. The
interval is ± 1.96 standard errors over users, whose targets are not independent of each other.
"""

from pydantic import BaseModel, ConfigDict

NORMAL_95 = 1.96
CUTOFFS = (5, 10, 20)
METRICS = tuple(f"{name}@{k}" for name in ("ndcg", "recall", "mrr") for k in CUTOFFS)
LIST_LENGTH = 10  # of the lists whose coverage and novelty are measured


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Content):
    """A mean over users with its 95 % interval; the interval is empty for a single user."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4f}"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


class Scorer(_Content):
    """The figures of the model, or of a baseline."""

    metrics: dict[str, Figure]  # METRICS
    coverage: float  # share of the catalogue that occurs in a list of LIST_LENGTH
    novelty: float  # mean self-information of the listed items, -log2 of their share of the export's events, in bits


class Stratum(_Content):
    """The targets of one kind, and the model's figures on them."""

    name: str
    num_targets: int
    num_users: int
    num_items: int | None  # items of the catalogue in it; None if it is not one of items
    metrics: dict[str, Figure]  # ndcg@10 and recall@10; empty without a target


class Counts(_Content):
    """What the later log holds. Nothing is left out of the figures without being counted here."""

    targets: int
    users: int  # with a target
    unknown_items: int  # different items of the later log that the model does not know
    unknown_targets: int  # targets of these items: the model cannot recommend them, and they count as missed
    unknown_histories: int  # targets whose history has no known item: they are ranked by popularity
    repeated_targets: int  # targets whose item is in the history; they are ranked, but `recommend` leaves them out
    cold_starts: int  # events without an earlier one of their user: not among the targets
    cold_users: int  # users of the later log without any target
    in_both: int  # rows that the log before contains, too: they are histories


class EvaluationResult(_Content):
    """An exported model on later data."""

    counts: Counts
    model: Scorer
    baselines: dict[str, Scorer]
    differences: dict[str, Figure]  # ndcg@10 of the model minus that of each baseline, paired over users
    strata: list[Stratum]
