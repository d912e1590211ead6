"""Rules: knowledge that outlives a session, with the counts of each session for and against it.

Confidence = (support + 1) / (support + contradiction + 2), Laplace's rule of succession: the probability that the next
trial supports the rule; one half without any counts. A rule is retired while its confidence is at most 1/4, that is,
contradiction >= 3 * support + 2.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .database import MemoryDatabase, Repository, reads, writes
from .like_conditions import HalfLine, half_line, normalised_condition, not_told_apart
from .records import Check, RuleRecord, RuleStatement
from .rows import Row, columns_of, from_row, insert, now, to_json, to_row
from .sessions import Sessions, store_profile
from .text import clean_text, content_key, normalised

STATEMENT_LIMIT = 600
CONDITION_LIMIT = 300
NEAREST = 3
"""A condition such as lr >= 0.001 is compared with this many rules whose thresholds are nearest."""
RULE_COLUMNS = columns_of(RuleRecord)
Count = tuple[int, int, Sequence[str]]
"""(support, contradiction, handles of these trials)"""


class Rules(Repository):
    """The table of rules, and the counts of each session for and against them."""

    def __init__(self, database: MemoryDatabase, sessions: Sessions) -> None:
        super().__init__(database)
        self._sessions = sessions

    @writes
    def add(self, record: RuleRecord) -> RuleRecord:
        """Store a rule, or add its evidence and counts to an equivalent rule; returns the stored rule.

        Rules are equivalent if they have the same kind and backbone, and conditions that hold for the same values or
        that no configuration tried so far tells apart. The words of an added statement are kept (`statements`).
        Raises SessionError if the rule names a session that is not open. A rule with session "" comes from a person.
        """
        if record.session:
            self._sessions.require_open(record.session)
        rule_id, is_new = self.find_or_store(record)
        if not is_new:
            self.db.execute("UPDATE rules SET times_said = times_said + 1 WHERE id = ?", [rule_id])
        self._set_counts(rule_id, record.session, (record.support, record.contradiction, record.evidence))
        return self.update_totals(rule_id, record.check if is_new else None)

    @writes
    def find_or_store(self, record: RuleRecord) -> tuple[int, bool]:
        """Find an equivalent rule, or store `record` without counts; returns the id and whether it was stored."""
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
        equivalent = self._find_equivalent(rule, words)
        if equivalent is not None:
            query = "UPDATE rules SET condition = coalesce(condition, ?), knob = coalesce(knob, ?) WHERE id = ?"
            self.db.execute(query, [rule.condition, knob, equivalent])
            self._keep_statement(equivalent, rule)
            return equivalent, False
        source = store_profile(self.db, rule.dataset_id, rule.profile)
        row = to_row(rule, leave_out=["id"]) | {"source": source, "words": words, "knob": knob}
        return insert(self.db, "rules", row), True

    @writes
    def count(self, session: str, counts: Mapping[int, Count]) -> int:
        """Set the counts of `session` for and against each rule; returns the number of counts that are new or changed.

        A second call for the same session replaces the first. The session may be in any state.
        """
        query = "SELECT rule, support, contradiction FROM rule_counts WHERE session = ?"
        known = {rule: (support, against) for rule, support, against in self.db.execute(query, [session]).fetchall()}
        changed = {rule: count for rule, count in counts.items() if known.get(rule, (0, 0)) != count[:2]}
        for rule, count in changed.items():
            self._set_counts(rule, session, count)
            self.update_totals(rule)
        return len(changed)

    @writes
    def update_totals(self, rule_id: int, check: Check | None = None) -> RuleRecord:
        """Recompute the counts, evidence and check of a rule from those of all sessions; returns the rule.

        If `check` is None, the majority of the counts determines it.
        """
        rule = self.get(rule_id)
        counts = list(self.db.query("SELECT * FROM rule_counts WHERE rule = ? ORDER BY rowid", [rule_id]))
        support, against = sum(row["support"] for row in counts), sum(row["contradiction"] for row in counts)
        evidence = to_json(_evidence(rule, counts))
        self.db.execute(
            'UPDATE rules SET support = ?, contradiction = ?, evidence = ?, "check" = ? WHERE id = ?',
            [support, against, evidence, check or _majority(support, against, rule.check), rule_id],
        )
        return self.get(rule_id)

    @reads
    def get(self, rule_id: int) -> RuleRecord:
        """The rule with this id, which must exist."""
        (row,) = self.db.query(f"SELECT {RULE_COLUMNS} FROM rules WHERE id = ?", [rule_id])
        return rule_record(row)

    @reads
    def statements(self, rule_id: int) -> list[RuleStatement]:
        """The other statements that were merged into a rule, oldest first."""
        query = "SELECT statement, condition, session, created_at FROM rule_statements WHERE rule = ? ORDER BY id"
        return [RuleStatement.model_validate(row) for row in self.db.query(query, [rule_id])]

    @reads
    def all(self, backbone: str | None = None) -> list[RuleRecord]:
        """Every rule, oldest first; with a backbone, the rules for it and those for both backbones."""
        query = f"SELECT {RULE_COLUMNS} FROM rules WHERE ? IS NULL OR backbone IS NULL OR backbone = ? ORDER BY id"
        return [rule_record(row) for row in self.db.query(query, [backbone, backbone])]

    @reads
    def about(self, backbone: str, knobs: Iterable[str]) -> list[RuleRecord]:
        """The prefer and avoid rules for `backbone` (or both backbones) whose condition is on one of `knobs`."""
        named = list(dict.fromkeys(knobs))
        query = (
            f"SELECT {RULE_COLUMNS} FROM rules WHERE knob IN ({', '.join('?' for _ in named)}) "
            "AND (backbone IS NULL OR backbone = ?) AND kind IN ('prefer', 'avoid') ORDER BY id"
        )
        return [rule_record(row) for row in self.db.query(query, [*named, backbone])]

    def _set_counts(self, rule_id: int, session: str, count: Count) -> None:
        """Replace the counts of `session` and extend its evidence; the caller must call `update_totals` afterwards."""
        support, contradiction, evidence = count
        handles = dict.fromkeys([*self._evidence_of(rule_id, session), *evidence])
        record = self._sessions.get(session) if session else None
        self.db.execute(
            "INSERT INTO rule_counts (rule, session, support, contradiction, evidence, dataset, dataset_id) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (rule, session) DO UPDATE SET support = excluded.support, "
            "contradiction = excluded.contradiction, evidence = excluded.evidence",
            [
                rule_id, session, support, contradiction, to_json(list(handles)),
                record.dataset if record else "", record.dataset_id if record else "",
            ],
        )  # fmt: skip

    def _evidence_of(self, rule_id: int, session: str) -> list[str]:
        query = "SELECT evidence FROM rule_counts WHERE rule = ? AND session = ?"
        row = self.db.execute(query, [rule_id, session]).fetchone()
        found: list[str] = json.loads(row[0]) if row else []
        return found

    def _find_equivalent(self, rule: RuleRecord, words: str) -> int | None:
        """The id of a rule with an equal condition or, if one of the rules has none, with the same content words."""
        if rule.condition is not None and (found := self._find_like_condition(rule, rule.condition)):
            return found
        unless = "AND condition IS NULL" if rule.condition is not None else ""
        query = f"SELECT id FROM rules WHERE kind = ? AND backbone IS ? AND words = ? {unless} ORDER BY id LIMIT 1"
        row = self.db.execute(query, [rule.kind, rule.backbone, words]).fetchone()
        return int(row[0]) if row else None

    def _find_like_condition(self, rule: RuleRecord, condition: str) -> int | None:
        """The id of a rule whose condition holds for the same values, or is not told apart from it by any trial."""
        query = "SELECT id, condition FROM rules WHERE knob = ? AND backbone IS ? AND kind = ? ORDER BY id"
        rows = self.db.execute(query, [_knob(condition), rule.backbone, rule.kind]).fetchall()
        wanted = normalised_condition(condition)
        equal = next((rule_id for rule_id, text in rows if normalised_condition(text) == wanted), None)
        line = half_line(condition)
        if equal is not None or line is None:
            return equal
        lines = [(rule_id, other) for rule_id, text in rows if (other := half_line(text))]
        nearest = sorted(lines, key=lambda pair: abs(pair[1].threshold - line.threshold))[:NEAREST]
        return next((rule_id for rule_id, other in nearest if self._not_told_apart(rule_id, other, rule, line)), None)

    def _not_told_apart(self, rule_id: int, known: HalfLine, rule: RuleRecord, line: HalfLine) -> bool:
        """Whether every trial of the sessions that stated or tested either rule counts the same for both."""
        query = "SELECT session FROM rule_counts WHERE rule = ? UNION SELECT session FROM rules WHERE id = ?"
        sessions = {name for (name,) in self.db.execute(query, [rule_id, rule_id]).fetchall()} | {rule.session}
        marks = ", ".join("?" for _ in sessions)
        query = f"SELECT DISTINCT session, json_extract(config, ?) FROM trials WHERE session IN ({marks})"
        tried = self.db.execute(query, [f"$.{line.knob}", *sessions]).fetchall()
        if {session for session, _ in tried} != sessions:  # a session of another home: its values are not known
            return False
        return not_told_apart(known, line, [value for _, value in tried if isinstance(value, int | float)])

    def _keep_statement(self, rule_id: int, rule: RuleRecord) -> None:
        """Store the words and the condition of an equivalent rule, unless they are on record already."""
        row = {"rule": rule_id, **rule.model_dump(include={"statement", "condition", "session", "created_at"})}
        query = (
            "SELECT 1 FROM rules WHERE id = :rule AND statement = :statement AND condition IS :condition UNION ALL "
            "SELECT 1 FROM rule_statements WHERE rule = :rule AND statement = :statement AND condition IS :condition"
        )
        if self.db.execute(query, row).fetchone() is None:
            insert(self.db, "rule_statements", row)


def rule_record(row: Row) -> RuleRecord:
    """Convert a row of `RULE_COLUMNS` to a record."""
    return RuleRecord.model_validate(from_row(row, ["evidence", "profile"]))


def confidence(support: int, contradiction: int) -> float:
    """The probability that the next trial supports a rule with these counts."""
    return (support + 1) / (support + contradiction + 2)


def with_counts(rule: RuleRecord, support: int, contradiction: int) -> RuleRecord:
    """A copy of the rule with these counts and the check that follows from them."""
    check = _majority(support, contradiction, rule.check if not support + contradiction else "unverified")
    return rule.model_copy(update={"support": support, "contradiction": contradiction, "check": check})


def _knob(condition: str | None) -> str | None:
    """The knob of a condition, which is its first word."""
    return condition.split()[0] if condition else None


def _majority(support: int, contradiction: int, default: Check) -> Check:
    if support == contradiction:
        return "unverified" if support else default
    return "supported" if support > contradiction else "contradicted"


def _evidence(rule: RuleRecord, counts: list[dict[str, Any]]) -> list[str]:
    """All evidence: plain handles for the rule's own session, "session:handle" for other sessions."""
    return [
        handle if row["session"] == rule.session else f"{row['session']}:{handle}"
        for row in counts
        for handle in json.loads(row["evidence"])
    ]
