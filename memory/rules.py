"""Rules: knowledge that outlives a session, with what each session counted for and against it."""

import json
from collections.abc import Sequence
from typing import Any

from sqlite_utils import Database

from ..data.errors import SessionError
from .records import Check, RuleRecord
from .rows import columns_of, from_row, insert, now, to_json, to_row
from .sessions import require_open
from .text import clean_text, normalised

STATEMENT_LIMIT = 600
CONDITION_LIMIT = 300
COLUMNS = columns_of(RuleRecord)


def add_rule(db: Database, record: RuleRecord) -> RuleRecord:
    """Store a rule, or add its evidence and counts to the rule that says the same; returns the rule as it stands.

    A rule that names a session needs that session open (SessionError); one with session "" comes from a person.
    """
    if record.session:
        require_open(db, record.session)
    condition = record.condition and clean_text(record.condition, CONDITION_LIMIT)
    rule = record.model_copy(
        update={
            "statement": clean_text(record.statement, STATEMENT_LIMIT),
            "condition": condition or None,
            "created_at": record.created_at or now(),
        }
    )
    same = next((known for known in _of_kind(db, rule) if _says_the_same(known, rule)), None)
    if same is None:
        rule_id = insert(db, "rules", to_row(rule, leave_out=["id"]))
    else:
        rule_id = same.id
        db.execute("UPDATE rules SET condition = coalesce(condition, ?) WHERE id = ?", [rule.condition, rule_id])
    return update_rule(
        db, rule_id, rule.session, rule.support, rule.contradiction, rule.evidence, None if same else rule.check
    )


def update_rule(
    db: Database,
    rule_id: int,
    session: str,
    support: int,
    contradiction: int,
    evidence: Sequence[str],
    check: Check | None,
) -> RuleRecord:
    """Set what `session` counts for and against a rule, then add the sessions up again.

    A second call for the same session replaces the first. Without a `check`, the majority of the counts decides.
    """
    rule = get_rule(db, rule_id)
    shown = [*_evidence_of(db, rule_id, session), *evidence]
    db.execute(
        "INSERT INTO rule_counts (rule, session, support, contradiction, evidence) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (rule, session) DO UPDATE SET support = excluded.support, "
        "contradiction = excluded.contradiction, evidence = excluded.evidence",
        [rule_id, session, support, contradiction, to_json(list(dict.fromkeys(shown)))],
    )
    counts = list(db.query("SELECT * FROM rule_counts WHERE rule = ? ORDER BY rowid", [rule_id]))
    total, against = sum(row["support"] for row in counts), sum(row["contradiction"] for row in counts)
    db.execute(
        'UPDATE rules SET support = ?, contradiction = ?, evidence = ?, "check" = ? WHERE id = ?',
        [total, against, to_json(_evidence(rule, counts)), check or _majority(total, against, rule.check), rule_id],
    )
    return get_rule(db, rule_id)


def get_rule(db: Database, rule_id: int) -> RuleRecord:
    """One rule; SessionError if there is none of that id."""
    rows = list(db.query(f"SELECT {COLUMNS} FROM rules WHERE id = ?", [rule_id]))
    if not rows:
        raise SessionError(f"unknown rule {rule_id}; read_memory(view='long_term') lists the rules")
    return _record(rows[0])


def all_rules(db: Database, backbone: str | None) -> list[RuleRecord]:
    """Every rule, oldest first; with a backbone, those that hold for it (rules for both included)."""
    where = "WHERE ? IS NULL OR backbone IS NULL OR backbone = ?"
    return [_record(row) for row in db.query(f"SELECT {COLUMNS} FROM rules {where} ORDER BY id", [backbone, backbone])]


def avoid_rules(db: Database, backbone: str) -> list[RuleRecord]:
    """The active discard heuristics: rules to avoid something, with a condition, that the trials support."""
    return [
        rule
        for rule in all_rules(db, backbone)
        if rule.kind == "avoid" and rule.condition is not None and rule.check == "supported"
    ]


def _of_kind(db: Database, rule: RuleRecord) -> list[RuleRecord]:
    query = f"SELECT {COLUMNS} FROM rules WHERE kind = ? AND backbone IS ? ORDER BY id"
    return [_record(row) for row in db.query(query, [rule.kind, rule.backbone])]


def _says_the_same(known: RuleRecord, rule: RuleRecord) -> bool:
    """The same condition, or, where one of the two has none, the same words."""
    if known.condition is not None and rule.condition is not None:
        return known.condition.split() == rule.condition.split()
    return normalised(known.statement) == normalised(rule.statement)


def _majority(support: int, contradiction: int, otherwise: Check) -> Check:
    if support == contradiction:
        return "unverified" if support else otherwise
    return "supported" if support > contradiction else "contradicted"


def _evidence_of(db: Database, rule_id: int, session: str) -> list[str]:
    query = "SELECT evidence FROM rule_counts WHERE rule = ? AND session = ?"
    row = db.execute(query, [rule_id, session]).fetchone()
    found: list[str] = json.loads(row[0]) if row else []
    return found


def _evidence(rule: RuleRecord, counts: list[dict[str, Any]]) -> list[str]:
    """All evidence: handles of the rule's own session as they are, those of others as "session:handle"."""
    return [
        handle if row["session"] == rule.session else f"{row['session']}:{handle}"
        for row in counts
        for handle in json.loads(row["evidence"])
    ]


def _record(row: dict[str, Any]) -> RuleRecord:
    return RuleRecord.model_validate(from_row(row, ["evidence", "profile"]))
