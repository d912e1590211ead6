"""Rules: knowledge that outlives a session, with what each session counted for and against it.

Confidence = (support + 1) / (support + contradiction + 2), Laplace's rule of succession: the chance that a further
trial bears the rule out; one half without any count. A rule is retired while its confidence is 1/4 or less: two trials
against it and none for it, or at least three against each one for it and two more.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .database import MemoryDatabase, Part, reads, writes
from .records import Check, RuleRecord
from .rows import Row, columns_of, from_row, insert, now, to_json, to_row
from .sessions import Sessions, remember_dataset
from .text import clean_text, content_key, normalised

STATEMENT_LIMIT = 600
CONDITION_LIMIT = 300
RULE_COLUMNS = columns_of(RuleRecord)
Count = tuple[int, int, Sequence[str]]
"""For a rule, against it, and the handles of the trials that say so."""


class Rules(Part):
    """The rules, and what each session counts for and against them."""

    def __init__(self, database: MemoryDatabase, sessions: Sessions) -> None:
        super().__init__(database)
        self._sessions = sessions

    @writes
    def add(self, record: RuleRecord) -> RuleRecord:
        """Store a rule, or add its evidence and counts to the rule that says the same; returns the rule as it stands.

        A rule that names a session needs that session open (SessionError); one with session "" comes from a person.
        """
        if record.session:
            self._sessions.require_open(record.session)
        rule_id, is_new = self.find_or_store(record)
        self._set_count(rule_id, record.session, (record.support, record.contradiction, record.evidence))
        return self.add_up(rule_id, record.check if is_new else None)

    @writes
    def find_or_store(self, record: RuleRecord) -> tuple[int, bool]:
        """The number of the rule that says the same, and False; or of `record`, stored without counts, and True."""
        condition = record.condition and " ".join(clean_text(record.condition, CONDITION_LIMIT).split())
        rule = record.model_copy(
            update={
                "statement": clean_text(record.statement, STATEMENT_LIMIT),
                "condition": condition or None,
                "created_at": record.created_at or now(),
            }
        )
        words = content_key(rule.statement) or normalised(rule.statement)
        knob = _knob(rule.condition)
        same = self._same(rule, words)
        if same is not None:
            query = "UPDATE rules SET condition = coalesce(condition, ?), knob = coalesce(knob, ?) WHERE id = ?"
            self.db.execute(query, [rule.condition, knob, same])
            return same, False
        source = remember_dataset(self.db, rule.dataset_id, rule.profile)
        row = to_row(rule, leave_out=["id"]) | {"source": source, "words": words, "knob": knob}
        return insert(self.db, "rules", row), True

    @writes
    def count(self, session: str, counts: Mapping[int, Count]) -> int:
        """Set what `session` counts for and against each rule; returns how many of these counts are new or differ.

        A second call for the same session replaces the first. The session may be in any state.
        """
        query = "SELECT rule, support, contradiction FROM rule_counts WHERE session = ?"
        known = {rule: (support, against) for rule, support, against in self.db.execute(query, [session]).fetchall()}
        changed = {rule: count for rule, count in counts.items() if known.get(rule, (0, 0)) != count[:2]}
        for rule, count in changed.items():
            self._set_count(rule, session, count)
            self.add_up(rule)
        return len(changed)

    @writes
    def add_up(self, rule_id: int, check: Check | None = None) -> RuleRecord:
        """Make a rule's counts, evidence and check those of all sessions together; returns it.

        Without a `check`, the majority of the counts decides.
        """
        rule = self.get(rule_id)
        counts = list(self.db.query("SELECT * FROM rule_counts WHERE rule = ? ORDER BY rowid", [rule_id]))
        total, against = sum(row["support"] for row in counts), sum(row["contradiction"] for row in counts)
        self.db.execute(
            'UPDATE rules SET support = ?, contradiction = ?, evidence = ?, "check" = ? WHERE id = ?',
            [total, against, to_json(_evidence(rule, counts)), check or _majority(total, against, rule.check), rule_id],
        )
        return self.get(rule_id)

    @reads
    def get(self, rule_id: int) -> RuleRecord:
        """The rule with this number, which must exist."""
        (row,) = self.db.query(f"SELECT {RULE_COLUMNS} FROM rules WHERE id = ?", [rule_id])
        return rule_record(row)

    @reads
    def all(self, backbone: str | None = None) -> list[RuleRecord]:
        """Every rule, oldest first; with a backbone, those that hold for it (rules for both included)."""
        query = f"SELECT {RULE_COLUMNS} FROM rules WHERE ? IS NULL OR backbone IS NULL OR backbone = ? ORDER BY id"
        return [rule_record(row) for row in self.db.query(query, [backbone, backbone])]

    @reads
    def about(self, backbone: str, knobs: Iterable[str]) -> list[RuleRecord]:
        """The rules to prefer or avoid something, for a backbone or both, whose condition is on one of `knobs`."""
        named = list(dict.fromkeys(knobs))
        query = (
            f"SELECT {RULE_COLUMNS} FROM rules WHERE knob IN ({', '.join('?' for _ in named)}) "
            "AND (backbone IS NULL OR backbone = ?) AND kind IN ('prefer', 'avoid') ORDER BY id"
        )
        return [rule_record(row) for row in self.db.query(query, [*named, backbone])]

    def _set_count(self, rule_id: int, session: str, count: Count) -> None:
        """Replace the counts of `session`, and add to its evidence; `add_up` must follow."""
        support, contradiction, evidence = count
        shown = dict.fromkeys([*self._evidence_of(rule_id, session), *evidence])
        place = self._sessions.get(session) if session else None
        self.db.execute(
            "INSERT INTO rule_counts (rule, session, support, contradiction, evidence, dataset, dataset_id) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (rule, session) DO UPDATE SET support = excluded.support, "
            "contradiction = excluded.contradiction, evidence = excluded.evidence",
            [
                rule_id, session, support, contradiction, to_json(list(shown)),
                place.dataset if place else "", place.dataset_id if place else "",
            ],
        )  # fmt: skip

    def _evidence_of(self, rule_id: int, session: str) -> list[str]:
        query = "SELECT evidence FROM rule_counts WHERE rule = ? AND session = ?"
        row = self.db.execute(query, [rule_id, session]).fetchone()
        found: list[str] = json.loads(row[0]) if row else []
        return found

    def _same(self, rule: RuleRecord, words: str) -> int | None:
        """The rule with the same condition, or, where one of the two has none, with nearly the same words."""
        where = "FROM rules WHERE kind = ? AND backbone IS ?"
        if rule.condition is not None:
            query = f"SELECT id {where} AND condition = ? ORDER BY id LIMIT 1"
            row = self.db.execute(query, [rule.kind, rule.backbone, rule.condition]).fetchone()
            if row:
                return int(row[0])
        unless = "AND condition IS NULL" if rule.condition is not None else ""
        query = f"SELECT id {where} AND words = ? {unless} ORDER BY id LIMIT 1"
        row = self.db.execute(query, [rule.kind, rule.backbone, words]).fetchone()
        return int(row[0]) if row else None


def rule_record(row: Row) -> RuleRecord:
    """A row of `RULE_COLUMNS` as a record."""
    return RuleRecord.model_validate(from_row(row, ["evidence", "profile"]))


def confidence(support: int, contradiction: int) -> float:
    """The chance that a further trial bears a rule out, by its counts."""
    return (support + 1) / (support + contradiction + 2)


def recounted(rule: RuleRecord, support: int, contradiction: int) -> RuleRecord:
    """The rule as it would stand with these counts alone."""
    check = _majority(support, contradiction, rule.check if not support + contradiction else "unverified")
    return rule.model_copy(update={"support": support, "contradiction": contradiction, "check": check})


def _knob(condition: str | None) -> str | None:
    """What a condition is about: the grammar of conditions begins with the knob."""
    return condition.split()[0] if condition else None


def _majority(support: int, contradiction: int, otherwise: Check) -> Check:
    if support == contradiction:
        return "unverified" if support else otherwise
    return "supported" if support > contradiction else "contradicted"


def _evidence(rule: RuleRecord, counts: list[dict[str, Any]]) -> list[str]:
    """All evidence: handles of the rule's own session as they are, those of others as "session:handle"."""
    return [
        handle if row["session"] == rule.session else f"{row['session']}:{handle}"
        for row in counts
        for handle in json.loads(row["evidence"])
    ]
