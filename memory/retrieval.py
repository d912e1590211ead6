"""What earlier sessions have to say: full-text search, and the ranked prior for a new dataset.

Validation only, like everything in memory.db. Text that agents wrote comes back quoted and bounded, as data.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from sqlite_utils import Database

from .learnt import Place, configuration, good_places
from .records import ConfigurationRecord, RuleKind, RuleRecord
from .rows import to_json
from .rules import RETIRED, confidence, get_rule, recounted, sources_of
from .similarity import text_similarity
from .text import quote

QUOTE_LIMIT = 400
QUERY_WORDS = 32  # more words only slow the search down
ALL_KINDS: tuple[RuleKind, ...] = get_args(RuleKind)
BACKBONE_MATCH = {"same": 1.0, "both": 0.9, "other": 0.5}
MATCHES = 2000  # only so many of the newest matches are ranked: a common word may stand in every text
SEARCH = """
    WITH ruled AS (SELECT rowid, rank FROM rules_fts WHERE rules_fts MATCH :words ORDER BY rowid DESC LIMIT :matches),
         reflected AS (
             SELECT rowid, rank FROM reflections_fts WHERE reflections_fts MATCH :words
              ORDER BY rowid DESC LIMIT :matches
         ),
         summed AS (
             SELECT rowid, rank FROM summaries_fts WHERE summaries_fts MATCH :words ORDER BY rowid DESC LIMIT :matches
         )
    SELECT * FROM (
    SELECT 'rule' AS source, rules.id, session, NULL AS trial, dataset, backbone, kind, condition,
           "check", rules.statement AS text, ruled.rank AS score
      FROM ruled JOIN rules ON rules.id = ruled.rowid
    UNION ALL
    SELECT 'reflection', reflections.id, reflections.session, trial, dataset, backbone, NULL, NULL,
           "check", reflections.lesson, reflected.rank
      FROM reflected JOIN reflections ON reflections.id = reflected.rowid
      JOIN sessions ON sessions.id = reflections.session
    UNION ALL
    SELECT 'summary', summaries.id, session, NULL, dataset, backbone, NULL, NULL, NULL, summaries.text, summed.rank
      FROM summed JOIN summaries ON summaries.id = summed.rowid
    ) WHERE :datasets = '[]' OR dataset IN (SELECT value FROM json_each(:datasets))
    ORDER BY score, source, id LIMIT :limit
"""
RANKED = """
    WITH similar AS MATERIALIZED (SELECT key AS source, value AS similarity FROM json_each(:similar)),
         counted AS ({counted})
    SELECT counted.id, support, contradiction, similarity FROM counted JOIN similar USING (source)
     WHERE kind IN (SELECT value FROM json_each(:kinds)) AND "check" <> 'contradicted'
       AND (support + 1.0) / (support + contradiction + 2) > :retired
     ORDER BY similarity * (support + 1.0) / (support + contradiction + 2)
            * CASE WHEN backbone = :backbone THEN :same WHEN backbone IS NULL THEN :both ELSE :other END DESC,
              counted.id DESC
     LIMIT :limit
"""
ALL_COUNTS = 'SELECT id, source, backbone, kind, support, contradiction, "check" FROM rules'
SOME_COUNTS = """
    SELECT rules.id, source, backbone, kind, sum(rule_counts.support) AS support,
           sum(rule_counts.contradiction) AS contradiction,
           iif(sum(rule_counts.contradiction) > sum(rule_counts.support), 'contradicted', '') AS "check"
      FROM rule_counts JOIN rules ON rules.id = rule_counts.rule
     WHERE rule_counts.dataset IN (SELECT value FROM json_each(:datasets)) GROUP BY rules.id
"""


def search(db: Database, query: str, limit: int, datasets: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rules, reflections and summaries with any of the words of `query`, best first; other characters are ignored.

    With `datasets`, only what comes from these.
    """
    words = re.findall(r"\w+", query)[:QUERY_WORDS]
    if not words or limit < 1:
        return []
    match = " OR ".join(f'"{word}"' for word in words)  # quoted: never read as FTS5 syntax
    values = {"words": match, "limit": limit, "matches": MATCHES, "datasets": to_json(list(datasets))}
    rows = list(db.query(SEARCH, values))
    return [_found(row) for row in rows]


def prior(
    db: Database,
    profile: Mapping[str, Any],
    dataset_id: str,
    backbone: str,
    limit: int,
    *,
    kinds: Sequence[RuleKind] = ALL_KINDS,
    datasets: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The rules that bear on a dataset and backbone, best first; contradicted and retired ones are left out.

    Rank = backbone match x profile similarity x confidence (`rules.confidence`). With `datasets`, a rule counts as
    far as sessions on these datasets bear it out.
    """
    query = RANKED.format(counted=SOME_COUNTS if datasets else ALL_COUNTS)
    values = {
        "similar": to_json(similarities(db, profile, dataset_id)),
        "backbone": backbone,
        **BACKBONE_MATCH,
        "kinds": to_json(list(kinds)),
        "datasets": to_json(list(datasets)),
        "retired": RETIRED,
        "limit": max(limit, 0),
    }
    rows = db.execute(query, values).fetchall()
    return [
        _quoted(recounted(get_rule(db, rule), support, against), similarity)
        for rule, support, against, similarity in rows
    ]


def portfolio(
    db: Database,
    profile: Mapping[str, Any],
    backbone: str,
    limit: int,
    dataset_id: str = "",
    datasets: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Up to `limit` configurations that did well on similar datasets, chosen one by one by average rank.

    On each dataset its configurations are ranked by validation NDCG@10, 0 = best and 1 = last or never run there. The
    next one is the one that most lowers the sum over the datasets of similarity x best rank of those chosen: the first
    does well on average, the later ones where the first do not.
    """
    similar = similarities(db, profile, dataset_id)
    found = good_places(db, backbone, similar, datasets)
    ranks = _ranks(found)
    best = dict.fromkeys((c.dataset_id for c in found), 1.0)
    chosen: list[dict[str, Any]] = []
    while len(chosen) < limit and ranks:
        loss = {
            key: math.fsum(similar[d] * min(rank, on.get(d, 1.0)) for d, rank in best.items())
            for key, on in ranks.items()
        }
        key = min(loss, key=lambda candidate: loss[candidate])  # the first of equals: of the most similar dataset
        on = ranks.pop(key)
        best = {d: min(rank, on.get(d, 1.0)) for d, rank in best.items()}
        chosen.append(_entry(configuration(db, next(c for c in found if c.config_hash == key)), similar))
    return chosen


def similarities(db: Database, profile: Mapping[str, Any], dataset_id: str) -> dict[str, float]:
    """How alike every dataset that is known is to one with this profile; the same dataset is 1."""
    own = to_json(dict(profile))
    return {
        source: 1.0 if dataset_id and source == dataset_id else text_similarity(own, other)
        for source, other in sources_of(db).items()
    }


def _ranks(places: Sequence[Place]) -> dict[str, dict[str, float]]:
    """Per configuration: its rank in [0, 1) on each dataset where it was run."""
    order: dict[str, list[str]] = {}
    for place in places:  # best first within each dataset
        hashes = order.setdefault(place.dataset_id, [])
        if place.config_hash not in hashes:
            hashes.append(place.config_hash)
    ranks: dict[str, dict[str, float]] = {}
    for dataset, hashes in order.items():
        for rank, key in enumerate(hashes):
            ranks.setdefault(key, {})[dataset] = rank / len(hashes)
    return ranks


def _entry(record: ConfigurationRecord, similar: Mapping[str, float]) -> dict[str, Any]:
    return {
        **record.model_dump(include={"dataset", "session", "trial", "config", "gain"}),
        "ndcg@10": record.ndcg,
        "similarity": round(similar[record.dataset_id], 4),
    }


def _quoted(rule: RuleRecord, similarity: float) -> dict[str, Any]:
    fields = rule.model_dump(include={"id", "kind", "condition", "backbone", "dataset", "check", "session"})
    return {
        **fields,
        "statement": quote(rule.statement, QUOTE_LIMIT),
        "support": rule.support,
        "contradiction": rule.contradiction,
        "confidence": round(confidence(rule.support, rule.contradiction), 4),
        "similarity": round(similarity, 4),
    }


def _found(row: dict[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in row.items() if value is not None and name != "score"}
    return {**shown, "text": quote(row["text"], QUOTE_LIMIT)}
