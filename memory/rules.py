"""Rules: knowledge that outlives a session, with what each session counted for and against it.

Confidence = (support + 1) / (support + contradiction + 2), Laplace's rule of succession: the chance that a further
trial bears the rule out; one half without any count. A rule is retired while its confidence is 1/4 or less: two trials
against it and none for it, or at least three against each one for it and two more.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlite_utils import Database

from ..data.errors import SessionError
from .records import Check, RuleRecord
from .rows import among, columns_of, from_row, insert, now, to_json, to_row
from .sessions import get_session, remember_dataset, require_open
from .text import clean_text, content_key, normalised

STATEMENT_LIMIT = 600
CONDITION_LIMIT = 300
COLUMNS = columns_of(RuleRecord)
Count = tuple[int, int, Sequence[str]]
"""For a rule, against it, and the handles of the trials that say so."""
RETIRED = 0.25
"""A rule with this confidence or less is no longer passed on."""
TRUSTED = 2 / 3
"""An `avoid` with a condition stops trials from this confidence on: one trial for it, and twice as many as against."""
TRUSTED_ALREADY = "AND \"check\" = 'supported' AND support >= 2 * contradiction + 1"  # the same in SQL


class AvoidRule(NamedTuple):
    """A discard heuristic; a full memory has hundreds of a knob, so this is all that is read of it."""

    id: int
    statement: str
    condition: str
    dataset_id: str
    session: str
    support: int
    contradiction: int


def confidence(support: int, contradiction: int) -> float:
    """The chance that a further trial bears a rule out, by its counts."""
    return (support + 1) / (support + contradiction + 2)


def is_retired(support: int, contradiction: int) -> bool:
    """Whether the trials have spoken so clearly against a rule that it is not passed on."""
    return confidence(support, contradiction) <= RETIRED


def add_rule(db: Database, record: RuleRecord) -> RuleRecord:
    """Store a rule, or add its evidence and counts to the rule that says the same; returns the rule as it stands.

    A rule that names a session needs that session open (SessionError); one with session "" comes from a person.
    """
    if record.session:
        require_open(db, record.session)
    rule_id, is_new = find_or_store(db, record)
    return update_rule(
        db, rule_id, record.session, record.support, record.contradiction, record.evidence,
        record.check if is_new else None,
    )  # fmt: skip


def find_or_store(db: Database, record: RuleRecord) -> tuple[int, bool]:
    """The number of the rule that says the same, and False; or of `record`, newly stored without counts, and True."""
    condition = record.condition and " ".join(clean_text(record.condition, CONDITION_LIMIT).split())
    rule = record.model_copy(
        update={
            "statement": clean_text(record.statement, STATEMENT_LIMIT),
            "condition": condition or None,
            "created_at": record.created_at or now(),
        }
    )
    words = content_key(rule.statement) or normalised(rule.statement)
    same = _same(db, rule, words)
    if same is not None:
        db.execute("UPDATE rules SET condition = coalesce(condition, ?) WHERE id = ?", [rule.condition, same])
        db.execute("UPDATE rules SET knob = coalesce(knob, ?) WHERE id = ?", [_knob(rule.condition), same])
        return same, False
    extra = {
        "source": remember_dataset(db, rule.dataset_id, rule.profile), "words": words, "knob": _knob(rule.condition)
    }  # fmt: skip
    return insert(db, "rules", to_row(rule, leave_out=["id"]) | extra), True


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
    get_rule(db, rule_id)
    shown = [*_evidence_of(db, rule_id, session), *evidence]
    place = get_session(db, session) if session else None
    db.execute(
        "INSERT INTO rule_counts (rule, session, support, contradiction, evidence, dataset, dataset_id) "
        "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (rule, session) DO UPDATE SET support = excluded.support, "
        "contradiction = excluded.contradiction, evidence = excluded.evidence",
        [
            rule_id, session, support, contradiction, to_json(list(dict.fromkeys(shown))),
            place.dataset if place else "", place.dataset_id if place else "",
        ],
    )  # fmt: skip
    return add_up(db, rule_id, check)


def count_rules(db: Database, session: str, counts: Mapping[int, Count]) -> int:
    """Set what `session` counts for and against each rule; returns how many of these counts are new or other ones."""
    rows = db.execute("SELECT rule, support, contradiction FROM rule_counts WHERE session = ?", [session]).fetchall()
    known = {rule: (support, against) for rule, support, against in rows}
    changed = {rule: count for rule, count in counts.items() if known.get(rule, (0, 0)) != count[:2]}
    for rule, (support, against, evidence) in changed.items():
        update_rule(db, rule, session, support, against, evidence, None)
    return len(changed)


def add_up(db: Database, rule_id: int, check: Check | None = None) -> RuleRecord:
    """Make a rule's counts, evidence and check those of all sessions together; returns it."""
    rule = get_rule(db, rule_id)
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


def latest_rules(db: Database, backbone: str, datasets: Sequence[str], limit: int) -> list[RuleRecord]:
    """The newest `limit` rules that hold for a backbone, the oldest of them first; of some datasets, if named."""
    where = f"WHERE (backbone IS NULL OR backbone = ?) {among(datasets, word='AND')}"
    rows = db.query(f"SELECT {COLUMNS} FROM rules {where} ORDER BY id DESC LIMIT ?", [backbone, *datasets, limit])
    return [_record(row) for row in list(rows)][::-1]


def rules_about(db: Database, backbone: str, knobs: Iterable[str]) -> list[RuleRecord]:
    """The rules to prefer or avoid something, for a backbone or both, whose condition is on one of `knobs`."""
    named = list(dict.fromkeys(knobs))
    query = (
        f"SELECT {COLUMNS} FROM rules WHERE knob IN ({', '.join('?' for _ in named)}) "
        "AND (backbone IS NULL OR backbone = ?) AND kind IN ('prefer', 'avoid') ORDER BY id"
    )
    return [_record(row) for row in list(db.query(query, [*named, backbone]))]


def avoid_rules(
    db: Database, backbone: str, knobs: Collection[str] | None, datasets: Sequence[str], session: str
) -> list[AvoidRule]:
    """The discard heuristics: rules to avoid a condition that the trials support with a confidence of `TRUSTED`.

    With `knobs`, those on these knobs; with `datasets`, by the counts of these datasets and of `session` alone.
    """
    narrowed = f"AND knob IN ({', '.join('?' for _ in knobs)})" if knobs is not None else ""
    query = (
        "SELECT id, statement, condition, dataset_id, session, support, contradiction FROM rules "
        f"WHERE kind = 'avoid' AND knob IS NOT NULL {narrowed} AND (backbone IS NULL OR backbone = ?) "
        f"{'' if datasets else TRUSTED_ALREADY} ORDER BY id"
    )
    found = [AvoidRule(*row) for row in db.execute(query, [*(knobs or ()), backbone]).fetchall()]
    if datasets:
        counts = counts_among(db, [rule.id for rule in found], datasets, session)
        found = [
            rule._replace(support=counts[rule.id][0], contradiction=counts[rule.id][1])
            for rule in found
            if rule.id in counts
        ]
    return [rule for rule in found if confidence(rule.support, rule.contradiction) >= TRUSTED]


def counts_among(
    db: Database, rules: Sequence[int], datasets: Sequence[str], session: str
) -> dict[int, tuple[int, int]]:
    """Per rule, what sessions on some datasets, and `session` itself, counted for and against it."""
    query = (
        "SELECT rule, sum(support), sum(contradiction) FROM rule_counts WHERE rule IN (SELECT value FROM json_each(?)) "
        f"AND ({among(datasets, word='')} OR session = ?) GROUP BY rule"
    )
    rows = db.execute(query, [to_json(list(rules)), *datasets, session]).fetchall()
    return {rule: (support, against) for rule, support, against in rows}


def recounted(rule: RuleRecord, support: int, contradiction: int) -> RuleRecord:
    """The rule as it would stand with these counts alone."""
    check = _majority(support, contradiction, rule.check if not support + contradiction else "unverified")
    return rule.model_copy(update={"support": support, "contradiction": contradiction, "check": check})


def sources_of(db: Database) -> dict[str, str]:
    """The profile, as JSON text, of every dataset that any session or rule comes from, by its key."""
    return dict(db.execute("SELECT source, profile FROM datasets").fetchall())


def _same(db: Database, rule: RuleRecord, words: str) -> int | None:
    """The rule with the same condition, or, where one of the two has none, with nearly the same words."""
    where = "FROM rules WHERE kind = ? AND backbone IS ?"
    if rule.condition is not None:
        query = f"SELECT id {where} AND condition = ? ORDER BY id LIMIT 1"
        row = db.execute(query, [rule.kind, rule.backbone, rule.condition]).fetchone()
        if row:
            return int(row[0])
    unless = "AND condition IS NULL" if rule.condition is not None else ""
    query = f"SELECT id {where} AND words = ? {unless} ORDER BY id LIMIT 1"
    row = db.execute(query, [rule.kind, rule.backbone, words]).fetchone()
    return int(row[0]) if row else None


def _knob(condition: str | None) -> str | None:
    """What a condition is about: the grammar of conditions begins with the knob."""
    return condition.split()[0] if condition else None


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
