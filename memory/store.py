"""memory.db as one object: what the tools, the reports and the commands call. One method, one transaction.

Not here: the rules of the Program, and anything about test targets, which memory.db never holds. Every method may
raise MemoryStoreError (the file is locked, full, read-only or damaged); SessionError where a session, trial or rule
does not exist, and for writes to a session that is not open.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import learnt, portable, reflections, retrieval, rules, sessions, trials
from .database import MemoryDatabase
from .records import (
    Check,
    ConfigurationRecord,
    EffectRecord,
    ReflectionRecord,
    RuleKind,
    RuleRecord,
    SessionRecord,
    SessionState,
    SummaryRecord,
    TrialOutcome,
    TrialRecord,
)
from .rules import AvoidRule, Count


class Memory:
    """memory.db at `path` (its directory must exist), or a database in memory for None.

    Threads of a process may share one Memory; every process opens its own.
    """

    def __init__(self, path: Path | None, *, busy_seconds: float = 5.0) -> None:
        self.database = MemoryDatabase(path, busy_seconds)
        self._pooled: dict[tuple[str, ...], tuple[int, dict[str, dict[str, Any]]]] = {}

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

    def open_sessions(self, dataset_id: str, backbone: str | None = None) -> list[SessionRecord]:
        """The sessions on a dataset that still take trials, oldest first; of one backbone, if it is named."""
        with self.database.reading() as db:
            return sessions.open_sessions(db, dataset_id, backbone)

    def sessions_in_short(self) -> list[dict[str, Any]]:
        """Every session, oldest first: session, dataset, backbone, state, opened_at, trials, best_ndcg10."""
        with self.database.reading() as db:
            return sessions.sessions_in_short(db)

    def spend_llm(self, session: str, usd: float) -> None:
        """Record what a session's language model has cost so far; the total only grows."""
        with self.database.writing() as db:
            sessions.spend_llm(db, session, usd)

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

    def running_trials(self, session: str) -> list[TrialRecord]:
        """The trial of a session that has not ended: none or one."""
        with self.database.reading() as db:
            return trials.running_trials(db, session)

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

    def count_rules(self, session: str, counts: Mapping[int, Count]) -> int:
        """Set what `session` counts for and against each of some rules, at once; returns how many counts changed."""
        with self.database.writing() as db:
            return rules.count_rules(db, session, counts)

    def rules(self, backbone: str | None = None) -> list[RuleRecord]:
        """Every rule, oldest first; with a backbone, those that hold for it."""
        with self.database.reading() as db:
            return rules.all_rules(db, backbone)

    def latest_rules(self, backbone: str, datasets: Sequence[str] = (), limit: int = 50) -> list[RuleRecord]:
        """The newest rules that hold for a backbone, the oldest of them first; of some datasets, if named."""
        with self.database.reading() as db:
            return rules.latest_rules(db, backbone, datasets, limit)

    def rules_about(self, backbone: str, knobs: Collection[str]) -> list[RuleRecord]:
        """The rules to prefer or avoid something, for a backbone, whose condition is on one of `knobs`."""
        with self.database.reading() as db:
            return rules.rules_about(db, backbone, knobs)

    def avoid_rules(
        self,
        backbone: str,
        knobs: Collection[str] | None = None,
        *,
        datasets: Sequence[str] = (),
        session: str = "",
    ) -> list[AvoidRule]:
        """The discard heuristics of a backbone: trusted rules of kind `avoid` with a condition (on one of `knobs`).

        With `datasets`, by what sessions on these, and `session` itself, counted.
        """
        with self.database.reading() as db:
            return rules.avoid_rules(db, backbone, knobs, datasets, session)

    def add_summary(self, record: SummaryRecord) -> SummaryRecord:
        """Store the Cognition Summary of an open session; it replaces an earlier one."""
        with self.database.writing() as db:
            return reflections.add_summary(db, record)

    def summaries(self) -> list[SummaryRecord]:
        """Every Cognition Summary, oldest first."""
        with self.database.reading() as db:
            return reflections.all_summaries(db)

    def latest_summaries(self, datasets: Sequence[str] = (), limit: int = 10) -> list[SummaryRecord]:
        """The newest Cognition Summaries, the oldest of them first; of some datasets, if named."""
        with self.database.reading() as db:
            return reflections.latest_summaries(db, datasets, limit)

    def teaching_datasets(self) -> list[str]:
        """The names of the datasets that any cognition comes from, in order."""
        with self.database.reading() as db:
            return reflections.teaching_datasets(db)

    def learn(self, configurations: Sequence[ConfigurationRecord], effects: Sequence[EffectRecord]) -> None:
        """Store what a session that closes has measured, for later ones; a second call changes nothing."""
        with self.database.writing() as db:
            learnt.learn(db, configurations, effects)

    def pooled_effects(self, backbone: str, datasets: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """What each knob did in closed sessions, as shares of the base's NDCG@10; not to be changed by the caller."""
        key = (backbone, *datasets)
        with self.database.reading() as db:
            measured = learnt.times_measured(db, backbone)  # grows whenever a session closes
            if key not in self._pooled or self._pooled[key][0] != measured:
                self._pooled[key] = measured, learnt.pooled_effects(db, backbone, datasets)
            return self._pooled[key][1]

    def similarities(self, profile: Mapping[str, Any], dataset_id: str) -> dict[str, float]:
        """How alike every dataset that is known is to one with this profile."""
        with self.database.reading() as db:
            return retrieval.similarities(db, profile, dataset_id)

    def search(self, query: str, limit: int = 20, datasets: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Rules, reflections and summaries with any word of `query`, best first; any text is a valid query."""
        with self.database.reading() as db:
            return retrieval.search(db, query, limit, datasets)

    def prior(
        self,
        profile: Mapping[str, Any],
        dataset_id: str,
        backbone: str,
        limit: int = 10,
        *,
        kinds: Sequence[RuleKind] = retrieval.ALL_KINDS,
        datasets: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """The rules that bear on a dataset and backbone, best first."""
        with self.database.reading() as db:
            return retrieval.prior(db, profile, dataset_id, backbone, limit, kinds=kinds, datasets=datasets)

    def portfolio(
        self,
        profile: Mapping[str, Any],
        backbone: str,
        limit: int = 5,
        *,
        dataset_id: str = "",
        datasets: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Configurations of closed sessions that did well on similar datasets, chosen by average rank."""
        with self.database.reading() as db:
            return retrieval.portfolio(db, profile, backbone, limit, dataset_id, datasets)

    def export(self) -> portable.Cognition:
        """All cognition: rules with their counts, summaries, effects and configurations."""
        with self.database.reading() as db:
            return portable.collect(db)

    def merge(self, cognition: portable.Cognition) -> portable.Merged:
        """Add the cognition of another memory; what is here already stays as it is."""
        with self.database.writing() as db:
            return portable.merge(db, cognition)
