"""Everything that a report shows about one session, as one value; read from memory.db and the vault's revealed results.

Test metrics come only from `examiner.request.read_revealed`, because memory.db has no column for them. While another
session on the same content is open, they are left out unless a person asks for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.errors import HomeError
from ..examiner.request import TestResult, read_revealed
from ..memory.records import (
    Confirmation,
    Extension,
    ReflectionRecord,
    RuleRecord,
    SessionRecord,
    SummaryRecord,
    TrialRecord,
)
from ..memory.store import Memory
from ..sandbox.observations import still_stopped
from ..sandbox.program import trials_measured
from ..sandbox.protocol import parse_protocol
from ..sandbox.statistics import selection_inflation
from ..sandbox.steps import KnobStep, knob_steps
from ..tools.cognition import select
from ..tools.withholding import open_beside
from .baselines import measured_baselines
from .dataset import DatasetView, dataset_view
from .split_agreement import Agreement, agreements


@dataclass(frozen=True)
class ReportData:
    """A snapshot of one session; `default_config` is the backbone's default under the session's protocol."""

    session: SessionRecord
    trials: list[TrialRecord]
    reflections: list[ReflectionRecord]
    rules: list[RuleRecord]
    summary: SummaryRecord | None
    test: TestResult | None
    default_config: Mapping[str, Any]
    dimensions: Mapping[str, str]
    steps: list[KnobStep]
    dataset: DatasetView | None
    extensions: Sequence[Extension] = ()
    agreements: Sequence[Agreement] = ()  # with other splits of the same log
    withheld_by: Sequence[str] = ()  # the open sessions because of which `test` is None

    @property
    def finished(self) -> list[TrialRecord]:
        """Trials with metrics, in the order in which they were started."""
        return [trial for trial in self.trials if trial.status == "finished" and trial.outcome]

    @property
    def default(self) -> TrialRecord | None:
        """The finished trial of the default configuration, or None if there is none."""
        return next((trial for trial in self.finished if not self.differences(trial)), None)

    @property
    def selected(self) -> TrialRecord | None:
        """The selected trial; before the freeze, the trial with the best validation NDCG@10 so far."""
        if self.session.selected:
            return next((trial for trial in self.trials if trial.handle == self.session.selected), None)
        return select(self.trials) if self.finished else None

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The validation metrics of scorers that need no model, by baseline; empty if no trial measured them."""
        return measured_baselines(self.trials)

    @property
    def confirmation(self) -> Confirmation | None:
        """The best trials under fresh seeds, if the session's protocol asked for it and the session is closed."""
        stored = self.summary.computed.get("confirmation") if self.summary else None
        return Confirmation.model_validate(stored) if stored else None

    @property
    def inflation(self) -> float | None:
        """SE·√(2 ln K): bound on the selection bias of the best of K measured configurations; None without an SE."""
        error = self.selected.outcome.ndcg_se if self.selected and self.selected.outcome else None
        return None if error is None else selection_inflation(error, trials_measured(self.trials))

    @property
    def train_seconds(self) -> float:
        """The training seconds that all trials together used of the budget."""
        return sum(trial.outcome.train_seconds for trial in self.trials if trial.outcome)

    @property
    def saved_seconds(self) -> float:
        """The training seconds that stopping trials early has probably saved; none for one that was continued since."""
        stopped = [trial.outcome for trial in still_stopped(self.trials) if trial.outcome]
        return sum(float(outcome.details["saved_seconds"]) for outcome in stopped)

    @property
    def seconds_per_trial(self) -> float | None:
        """Mean wall-clock seconds of a finished trial's process."""
        spent = [trial.outcome.wall_seconds for trial in self.finished if trial.outcome]
        return sum(spent) / len(spent) if spent else None

    def differences(self, trial: TrialRecord) -> dict[str, Any]:
        """The knobs of `trial` that differ from the backbone's default."""
        default = self.default_config
        return {knob: chosen for knob, chosen in trial.config.items() if chosen != default.get(knob)}


def gather(home: Path, session: str, *, reveal: bool = False) -> ReportData:
    """Read one session of `home`; `reveal`: with its test result even if that is withheld from agents.

    Raises HomeError if there is no memory.db, SessionError for an unknown id.
    """
    database = home / "memory.db"
    if not database.exists():
        raise HomeError(f"home={str(home)!r} has no memory.db; give the directory of the session with --home")
    with Memory(database) as memory:
        record = memory.sessions.get(session)
        trials = memory.trials.all(record.id)
        extensions = memory.sessions.extensions(record.id)
        reflections = memory.reflections.all(record.id)
        rules = [rule for rule in memory.rules.all() if _bears_on(rule, record.id)]
        found = agreements(home, memory, record)
        summaries = [summary for summary in memory.summaries.all() if summary.session == record.id]
        test = read_revealed(home, record.id)
        withheld_by = open_beside(home, memory, record) if test and not reveal else []
    space = parse_protocol(record.protocol_text, source=f"SANDBOX.md of session {record.id}").space
    default = space.default(record.backbone)
    return ReportData(
        session=record,
        trials=trials,
        reflections=reflections,
        rules=rules,
        summary=summaries[0] if summaries else None,
        test=None if withheld_by else test,
        default_config=default.model_dump(),
        dimensions={knob.name: knob.dimension for knob in space.knobs(record.backbone)},
        steps=knob_steps(trials, default),
        dataset=dataset_view(home, record),
        extensions=extensions,
        agreements=found,
        withheld_by=withheld_by,
    )


def _bears_on(rule: RuleRecord, session: str) -> bool:
    """Whether a rule was learnt in `session` or has evidence from it (a rule that is learnt again is stored once)."""
    return rule.session == session or any(shown.startswith(f"{session}:") for shown in rule.evidence)


def ndcg(trial: TrialRecord) -> float | None:
    """Validation NDCG@10 of a trial, or None if it has none."""
    return trial.outcome.metrics.get("ndcg@10") if trial.outcome else None
