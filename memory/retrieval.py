"""What earlier sessions have to say: full-text search, and the ranked prior for a new dataset.

Validation only, like everything in memory.db. Text that agents wrote comes back quoted and bounded, as data.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from sqlite_utils import Database

from .records import RuleRecord
from .rules import all_rules
from .similarity import profile_similarity
from .text import quote

QUOTE_LIMIT = 400
QUERY_WORDS = 32  # more words only slow the search down
BACKBONE_MATCH = {"same": 1.0, "both": 0.9, "other": 0.5}
SEARCH = """
    SELECT 'rule' AS source, rules.id, session, NULL AS trial, dataset, backbone, kind, condition,
           "check", rules.statement AS text, rules_fts.rank AS score
      FROM rules_fts JOIN rules ON rules.id = rules_fts.rowid WHERE rules_fts MATCH :words
    UNION ALL
    SELECT 'reflection', reflections.id, reflections.session, trial, dataset, backbone, NULL, NULL,
           "check", reflections.lesson, reflections_fts.rank
      FROM reflections_fts JOIN reflections ON reflections.id = reflections_fts.rowid
      JOIN sessions ON sessions.id = reflections.session WHERE reflections_fts MATCH :words
    UNION ALL
    SELECT 'summary', summaries.id, session, NULL, dataset, backbone, NULL, NULL,
           NULL, summaries.text, summaries_fts.rank
      FROM summaries_fts JOIN summaries ON summaries.id = summaries_fts.rowid WHERE summaries_fts MATCH :words
    ORDER BY score, source, 2 LIMIT :limit
"""
CLOSED_TRIALS = """
    SELECT sessions.id AS session, sessions.dataset, sessions.dataset_id, sessions.profile, trials.handle AS trial,
           trials.config, json_extract(trials.metrics, '$."ndcg@10"') AS ndcg
      FROM sessions JOIN trials ON trials.session = sessions.id
     WHERE sessions.state <> 'open' AND sessions.backbone = ? AND trials.status = 'finished'
       AND ndcg IS NOT NULL AND (sessions.selected IS NULL OR sessions.selected = trials.handle)
     ORDER BY ndcg DESC, sessions.serial, trials.number
"""


def search(db: Database, query: str, limit: int) -> list[dict[str, Any]]:
    """Rules, reflections and summaries with any of the words of `query`, best first; other characters are ignored."""
    words = re.findall(r"\w+", query)[:QUERY_WORDS]
    if not words or limit < 1:
        return []
    match = " OR ".join(f'"{word}"' for word in words)  # quoted: never read as FTS5 syntax
    rows = list(db.query(SEARCH, {"words": match, "limit": limit}))
    return [_found(row) for row in rows]


def prior(db: Database, profile: Mapping[str, Any], dataset_id: str, backbone: str, limit: int) -> list[dict[str, Any]]:
    """The rules that bear on a dataset and backbone, best first; contradicted ones are left out.

    Rank = backbone match x profile similarity x confidence, with confidence (support + 1) / (support +
    contradiction + 2): Laplace's rule of succession, so a rule without counts stands at one half.
    """
    scored = []
    for rule in all_rules(db, None):
        if rule.check != "contradicted":
            similarity = _similarity(profile, dataset_id, rule.profile, rule.dataset_id)
            scored.append((_match(rule, backbone) * similarity * confidence(rule), rule, similarity))
    scored.sort(key=lambda entry: (-entry[0], -entry[1].id))
    return [_quoted(rule, similarity) for _, rule, similarity in scored[: max(limit, 0)]]


def portfolio(
    db: Database, profile: Mapping[str, Any], backbone: str, limit: int, dataset_id: str
) -> list[dict[str, Any]]:
    """The best configuration of each dataset with a session past `open`, by similarity of the datasets.

    The figures are validation NDCG@10: of the selected trial, or of the best finished one where none was selected.
    """
    best: dict[str, dict[str, Any]] = {}
    for row in list(db.query(CLOSED_TRIALS, [backbone])):
        best.setdefault(row["dataset_id"], row)  # rows come best first
    entries = [
        {
            "dataset": row["dataset"],
            "session": row["session"],
            "trial": row["trial"],
            "config": json.loads(row["config"]),
            "ndcg@10": row["ndcg"],
            "similarity": round(_similarity(profile, dataset_id, json.loads(row["profile"]), row["dataset_id"]), 4),
        }
        for row in best.values()
    ]
    return sorted(entries, key=lambda entry: (-entry["similarity"], entry["session"]))[: max(limit, 0)]


def confidence(rule: RuleRecord) -> float:
    """The chance that a further trial bears the rule out, by its counts."""
    return (rule.support + 1) / (rule.support + rule.contradiction + 2)


def _match(rule: RuleRecord, backbone: str) -> float:
    if rule.backbone is None:
        return BACKBONE_MATCH["both"]
    return BACKBONE_MATCH["same" if rule.backbone == backbone else "other"]


def _similarity(profile: Mapping[str, Any], dataset_id: str, other: Mapping[str, Any], other_id: str) -> float:
    return 1.0 if dataset_id and dataset_id == other_id else profile_similarity(profile, other)


def _quoted(rule: RuleRecord, similarity: float) -> dict[str, Any]:
    fields = rule.model_dump(include={"id", "kind", "condition", "backbone", "dataset", "check", "session"})
    counts = {"support": rule.support, "contradiction": rule.contradiction, "similarity": round(similarity, 4)}
    return {**fields, "statement": quote(rule.statement, QUOTE_LIMIT), **counts}


def _found(row: dict[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in row.items() if value is not None and name != "score"}
    return {**shown, "text": quote(row["text"], QUOTE_LIMIT)}
