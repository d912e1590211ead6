"""memory.db as one object: what the tools, the reports and the commands call. One method, one transaction.

Not here: the rules of the Program, and anything about test targets, which memory.db never holds. Every method may
raise MemoryStoreError (the file is locked, full, read-only or damaged); SessionError where a session, trial or rule
does not exist, and for writes to a session that is not open.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import reflections, retrieval, rules, sessions, trials
from .database import MemoryDatabase
from .records import (
    Check,
    ReflectionRecord,
    RuleRecord,
    SessionRecord,
    SessionState,
    SummaryRecord,
    TrialOutcome,
    TrialRecord,
)


class Memory:
    """memory.db at `path` (its directory must exist), or a database in memory for None.

    Threads of a process may share one Memory; every process opens its own.
    """

    def __init__(self, path: Path | None, *, busy_seconds: float = 5.0) -> None:
        self.database = MemoryDatabase(path, busy_seconds)

    def __enter__(self) -> "Memory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the object cannot be used afterwards."""
        self.database.close()

    def open_session(self, record: SessionRecord, *, taken: Collection[str] = ()) -> SessionRecord:
        """Store a new session; an empty id becomes the next "DATASET-BACKBONE-N" that is not in `taken` either."""
        with self.database.writing() as db:
            return sessions.open_session(db, record, taken)

    def session(self, session: str) -> SessionRecord:
        """One session."""
        with self.database.reading() as db:
            return sessions.get_session(db, session)

    def sessions(self) -> list[SessionRecord]:
        """Every session, oldest first."""
        with self.database.reading() as db:
            return sessions.all_sessions(db)

    def set_state(
        self, session: str, expected: SessionState, new: SessionState, *, selected: str | None = None
    ) -> bool:
        """Go from `expected` to `new` (open → frozen → attempted → revealed | void; frozen → void).

        Returns False if the session was not in `expected`: somebody else was first. `selected`, a finished trial, is
        set at the freeze; a running trial prevents the freeze (SessionError).
        """
        with self.database.writing() as db:
            return sessions.set_state(db, session, expected, new, selected)

    def add_trial(self, record: TrialRecord) -> TrialRecord:
        """Start a trial; number and handle are given here. SessionError while another trial of the session runs."""
        with self.database.writing() as db:
            return trials.add_trial(db, record)

    def finish_trial(self, session: str, handle: str, outcome: TrialOutcome) -> bool:
        """End a trial; returns whether this call did, which exactly one call does."""
        with self.database.writing() as db:
            return trials.finish_trial(db, session, handle, outcome)

    def trial(self, session: str, handle: str) -> TrialRecord:
        """One trial."""
        with self.database.reading() as db:
            return trials.get_trial(db, session, handle)

    def trials(self, session: str) -> list[TrialRecord]:
        """The trials of a session, first to last."""
        with self.database.reading() as db:
            return trials.all_trials(db, session)

    def incumbent(self, session: str) -> TrialRecord | None:
        """The latest trial that was kept, or None."""
        with self.database.reading() as db:
            return trials.incumbent(db, session)

    def add_reflection(self, record: ReflectionRecord) -> ReflectionRecord:
        """Store the one reflection on a trial that is over."""
        with self.database.writing() as db:
            return reflections.add_reflection(db, record)

    def reflections(self, session: str) -> list[ReflectionRecord]:
        """The reflections of a session, in the order of its trials."""
        with self.database.reading() as db:
            return reflections.all_reflections(db, session)

    def add_rule(self, record: RuleRecord) -> RuleRecord:
        """Store a rule, or add its evidence to the one that says the same; returns the rule as it now stands."""
        with self.database.writing() as db:
            return rules.add_rule(db, record)

    def update_rule(
        self,
        rule_id: int,
        *,
        session: str,
        support: int,
        contradiction: int,
        evidence: Sequence[str] = (),
        check: Check | None = None,
    ) -> RuleRecord:
        """Set what `session` counts for and against a rule (a second call replaces the first), in any state."""
        with self.database.writing() as db:
            return rules.update_rule(db, rule_id, session, support, contradiction, evidence, check)

    def rules(self, backbone: str | None = None) -> list[RuleRecord]:
        """Every rule, oldest first; with a backbone, those that hold for it."""
        with self.database.reading() as db:
            return rules.all_rules(db, backbone)

    def avoid_rules(self, backbone: str) -> list[RuleRecord]:
        """The active discard heuristics of a backbone: supported rules of kind `avoid` that have a condition."""
        with self.database.reading() as db:
            return rules.avoid_rules(db, backbone)

    def add_summary(self, record: SummaryRecord) -> SummaryRecord:
        """Store the Cognition Summary of an open session; it replaces an earlier one."""
        with self.database.writing() as db:
            return reflections.add_summary(db, record)

    def summaries(self) -> list[SummaryRecord]:
        """Every Cognition Summary, oldest first."""
        with self.database.reading() as db:
            return reflections.all_summaries(db)

    def search(self, query: str, limit: int = 20) -> list[dict[str, Any]]:
        """Rules, reflections and summaries with any word of `query`, best first; any text is a valid query."""
        with self.database.reading() as db:
            return retrieval.search(db, query, limit)

    def prior(
        self, profile: Mapping[str, Any], dataset_id: str, backbone: str, limit: int = 10
    ) -> list[dict[str, Any]]:
        """The rules that bear on a dataset and backbone, best first."""
        with self.database.reading() as db:
            return retrieval.prior(db, profile, dataset_id, backbone, limit)

    def portfolio(
        self, profile: Mapping[str, Any], backbone: str, limit: int = 3, *, dataset_id: str = ""
    ) -> list[dict[str, Any]]:
        """The best configurations of closed sessions on similar datasets, most similar first."""
        with self.database.reading() as db:
            return retrieval.portfolio(db, profile, backbone, limit, dataset_id)
