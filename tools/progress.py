"""The progress of a running trial for agents and people: the score that will be judged, and the time left."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from ..data.wording import roughly
from ..memory.records import SessionRecord, TrialRecord
from ..sandbox.costs import estimate_seconds
from ..sandbox.outlook import score_at, score_now, time_left
from ..training.spec import END, PROGRESS
from ..trials.launcher import progress_of
from .places import started_at
from .workspace import Workspace


class RunningProgress(BaseModel):
    """How far a running trial is. What is not known is left out."""

    stage: Literal["loading", "training", "scoring"]  # always given
    epoch: int = 0
    epochs: int = 0
    ndcg10: float | None = None  # validation NDCG@10 as the trial will be judged, of its best weights so far
    incumbent: str | None = None
    incumbent_ndcg10: float | None = None  # the incumbent's at the same epoch
    eta_seconds: float | None = None  # until its end, if it trains all its epochs
    eta_earliest_seconds: float | None = None  # if no further epoch is better, so that patience ends it
    ending: bool = False  # it was asked to end after its current epoch, with its best weights
    hopeless: str = ""  # why it will not be kept, of a trial that no rule stops
    wait_limit_seconds: float | None = None  # the longest that one call of this client waits

    def line(self) -> str:
        """The progress in one short line."""
        text: str = self.stage
        if self.epochs:
            text += f", epoch {self.epoch}/{self.epochs}"
        if self.ndcg10 is not None:
            text += f", validation NDCG@10 {self.ndcg10:.4f}"
        if self.ndcg10 is not None and self.incumbent_ndcg10 is not None:
            text += f" ({self.incumbent} there {self.incumbent_ndcg10:.4f})"
        if self.eta_seconds is not None:
            text += f", {self.time_left()} left"
        return text

    def shown(self) -> dict[str, Any]:
        """The fields that say something, for an observation."""
        return self.model_dump(exclude_defaults=True)

    def time_left(self) -> str:
        """The time left in words; empty if it is not known."""
        if self.eta_seconds is None:
            return ""
        latest, earliest = roughly(self.eta_seconds), self.eta_earliest_seconds
        return latest if earliest is None else f"{roughly(earliest)} to {latest}"


def progress_now(
    ws: Workspace,
    session: SessionRecord,
    record: TrialRecord,
    incumbent: TrialRecord | None,
    trials: Sequence[TrialRecord],
) -> RunningProgress:
    """The progress of the running trial `record` of a session, which has these `trials`."""
    directory, config = ws.trial_directory(session.id, record.handle), record.configuration
    progress = progress_of(directory)
    now, ending = time.time(), (directory / END).exists()
    estimate = None if progress.epoch_seconds else estimate_seconds(config, trials, session.profile.get("items"))
    since = now - (_modified(directory / PROGRESS) or now)
    left = time_left(config, progress, since, now - started_at(record), estimate, ending=ending)
    score = score_now(config, progress)
    theirs = score_at(incumbent, progress.epoch) if incumbent and score is not None else None
    earlier = left is not None and round(left.at_least) < round(left.at_most)
    return RunningProgress(
        stage=progress.stage,
        epoch=progress.epoch,
        epochs=progress.epochs,
        ndcg10=score,
        incumbent=incumbent.handle if incumbent and theirs is not None else None,
        incumbent_ndcg10=theirs,
        eta_seconds=round(left.at_most, 1) if left else None,
        eta_earliest_seconds=round(left.at_least, 1) if left and earlier else None,
        ending=ending,
        hopeless=progress.hopeless,
    )


def _modified(path: Path) -> float | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return None
