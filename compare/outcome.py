"""What one session of a comparison came to: read from its home when it is over, and stored beside it as result.json.

Test figures come only from the examiner's revealed results, as in `report/gather.py`.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.atomic import write_bytes
from ..data.errors import SessionError
from ..examiner.request import read_revealed
from ..memory.records import SessionRecord, TrialRecord
from ..memory.store import Memory
from ..sandbox.proposal_scores import proposal_scores
from ..sandbox.protocol import parse_protocol
from ..tools.cognition import select
from .task import Task

RESULT = "result.json"
PROGRESS = "progress.json"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Progress(_Value):
    """What memory.db does not record: seconds on the clock over all attempts, and the trials that were refused.

    A refusal is counted once, even if a resumed process repeats it: each is kept as a text that identifies it.
    """

    wall_seconds: float = 0.0
    refused: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()


class TrialResult(_Value):
    """One trial that used budget; `ndcg10` (validation) is None unless it finished.

    saved_seconds: of a stopped trial, an estimate of the training seconds that stopping it has saved.
    """

    trial: str
    status: Literal["running", "finished", "stopped", "crashed", "cancelled"]
    verdict: str | None
    ndcg10: float | None
    ndcg10_se: float | None
    train_seconds: float
    wall_seconds: float
    rescored: bool
    saved_seconds: float = 0.0
    base: str
    changes: dict[str, Any]


class ModelUse(_Value):
    """What a language model used in a session, from the ledger; `usd` is None where its price is not known."""

    model: str
    source: Literal["measured", "imported"]
    calls: int
    lost: int
    input: int
    cached: int
    cache_write: int
    output: int
    reasoning: int
    usd: float | None

    @property
    def input_tokens(self) -> int:
        """All tokens that were sent."""
        return self.input + self.cached + self.cache_write


class ProposalCounts(_Value):
    """How many trials followed a proposal of the server, and how often it came true (sandbox/proposal_scores.py)."""

    yes: int = 0
    no: int = 0
    unclear: int = 0


class Ended(_Value, ABC):
    """What a process of a comparison stores when its work is over."""

    @property
    @abstractmethod
    def num_trials(self) -> int:
        """The trials that were run."""

    @property
    @abstractmethod
    def ending(self) -> str:
        """How it ended, in one line."""


class SessionResult(Ended):
    """A session that is over. `test` is None if no look was taken (a replay table has no test set)."""

    key: str
    arm: str
    dataset: str
    backbone: str
    seed: int
    session: str
    state: str
    trials: tuple[TrialResult, ...]
    selected: str | None
    settings: dict[str, Any]  # of the selected trial, where they differ from the default
    validation: dict[str, float]
    test: dict[str, float] | None
    look: int | None
    num_users: int | None
    wall_seconds: float
    refused: int
    duplicates: int
    models: tuple[ModelUse, ...] = ()
    proposals: ProposalCounts = ProposalCounts()

    @property
    def num_trials(self) -> int:
        """The trials that used budget."""
        return len(self.trials)

    @property
    def ending(self) -> str:
        """How the session ended, in one line."""
        return (
            f"validation NDCG@10 {self.final:.4f} after {len(self.trials)} trials, {self.train_seconds:.1f} training "
            f"seconds, {self.state}"
        )

    @property
    def unit(self) -> tuple[str, str, int]:
        """What pairs the sessions of two arms: dataset, backbone, seed."""
        return self.dataset, self.backbone, self.seed

    @property
    def final(self) -> float:
        """The best validation NDCG@10 of the session; 0 if no trial finished."""
        return max((trial.ndcg10 or 0.0 for trial in self.trials), default=0.0)

    @property
    def train_seconds(self) -> float:
        """Training seconds that the session used."""
        return sum(trial.train_seconds for trial in self.trials)


def stored_result(home: Path) -> SessionResult | None:
    """The result in `home`; None if its session is not over, or was stored by another version of this format."""
    try:
        return SessionResult.model_validate_json((home / RESULT).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def stored_progress(home: Path) -> Progress:
    """The progress in `home`; a new one if there is none."""
    try:
        return Progress.model_validate_json((home / PROGRESS).read_bytes())
    except (FileNotFoundError, ValidationError):
        return Progress()


def store(value: _Value, path: Path) -> None:
    """Write a value as JSON, atomically."""
    write_bytes(path, (value.model_dump_json(indent=1) + "\n").encode())


def own_session(memory: Memory) -> SessionRecord | None:
    """The session of a home of a comparison, which has one; None before it is opened."""
    return next(iter(memory.sessions.all()), None)


def read_outcome(task: Task) -> SessionResult:
    """The result of the session in the home of `task`. Raises SessionError if there is none."""
    home = Path(task.home)
    with Memory(home / "memory.db") as memory:
        session = own_session(memory)
        if session is None:
            raise SessionError(f"home={task.home!r} has no session yet; run the comparison again")
        trials = memory.trials.all(session.id)
        uses = memory.ledger.totals(session.id)
    chosen = next((trial for trial in trials if trial.handle == session.selected), None)
    selected = chosen or (select(trials) if any(trial.status == "finished" for trial in trials) else None)
    revealed = read_revealed(home, session.id)
    progress = stored_progress(home)
    return SessionResult(
        key=task.key,
        arm=task.arm,
        dataset=task.dataset,
        backbone=task.backbone,
        seed=task.seed,
        session=session.id,
        state=session.state,
        trials=tuple(trial_result(trial) for trial in trials if not trial.machine_fault),
        selected=selected.handle if selected else None,
        settings=_settings(session, selected) if selected else {},
        validation=selected.outcome.metrics if selected and selected.outcome else {},
        test=revealed.metrics if revealed else None,
        look=revealed.look if revealed else None,
        num_users=revealed.num_users if revealed else None,
        wall_seconds=round(progress.wall_seconds, 1),
        refused=len(progress.refused),
        duplicates=len(progress.duplicates),
        proposals=_proposals(trials),
        models=tuple(ModelUse.model_validate(use.model_dump(include=set(ModelUse.model_fields))) for use in uses),
    )


def _proposals(trials: Sequence[TrialRecord]) -> ProposalCounts:
    counts = Counter(score.came_true for score in proposal_scores(trials))
    return ProposalCounts(yes=counts["yes"], no=counts["no"], unclear=counts["unclear"])


def _settings(session: SessionRecord, trial: TrialRecord) -> dict[str, Any]:
    space = parse_protocol(session.protocol_text, f"SANDBOX.md of session {session.id}").space
    return space.differences(trial.configuration)


def trial_result(trial: TrialRecord) -> TrialResult:
    """A trial as results state it."""
    outcome = trial.outcome
    return TrialResult(
        trial=trial.handle,
        status=trial.status,
        verdict=outcome.verdict if outcome else None,
        ndcg10=outcome.metrics.get("ndcg@10") if outcome and trial.status == "finished" else None,
        ndcg10_se=outcome.ndcg_se if outcome else None,
        train_seconds=outcome.train_seconds if outcome else 0.0,
        wall_seconds=outcome.wall_seconds if outcome else 0.0,
        rescored=bool(outcome and outcome.details.get("rescored")),
        saved_seconds=float(outcome.details["saved_seconds"]) if outcome and trial.status == "stopped" else 0.0,
        base=trial.base,
        changes=trial.changes,
    )
