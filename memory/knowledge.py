"""What earlier sessions have to say to a new one: full-text search, ranked rules, pooled effects, configurations.

`Memory.knowledge(datasets)` is a view of memory.db. With datasets named, every query sees only what sessions on these
left. The view holds the condition on the datasets, so no query takes them as an argument. SQL views and temporary
tables would not serve: threads with sessions of different scopes share one connection, and each read would have to
write first. Where no dataset is named, the condition is the constant TRUE, which SQLite removes, so that such queries
use their indexes as if there were none.

Validation only, like everything in memory.db. Text that agents wrote comes back quoted and bounded, as data.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from .database import MemoryDatabase, Part, reads
from .measurements import CONFIGURATION_COLUMNS
from .pooling import Sums, pooled_effect
from .portfolio import Run, choose
from .records import ConfigurationRecord, RuleKind, RuleRecord, SummaryRecord
from .rows import Row, from_row, to_json
from .rules import RULE_COLUMNS, Rules, confidence, recounted, rule_record
from .similarity import text_similarity
from .summaries import SUMMARY_COLUMNS, summary_record
from .text import quote

QUOTE_LIMIT = 400
QUERY_WORDS = 32  # more words only slow the search down
ALL_KINDS: tuple[RuleKind, ...] = get_args(RuleKind)
BACKBONE_MATCH = {"same": 1.0, "both": 0.9, "other": 0.5}
RETIRED = 0.25
"""A rule with this confidence or less is no longer passed on."""
TRUSTED = 2 / 3
"""An `avoid` with a condition stops trials from this confidence on: one trial for it, and twice as many as against."""
TRUSTED_ALREADY = "AND \"check\" = 'supported' AND support >= 2 * contradiction + 1"  # the same in SQL
PER_DATASET = 8
"""Configurations per dataset that a portfolio is chosen from."""
NEAREST = 12
"""Datasets, the most similar ones, that a portfolio is chosen from."""
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
    ) WHERE {scope}
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
SCOPED_COUNTS = """
    SELECT id, source, backbone, kind, counts.support, counts.contradiction,
           iif(counts.contradiction > counts.support, 'contradicted', '') AS "check"
      FROM (SELECT rule, sum(support) AS support, sum(contradiction) AS contradiction
              FROM rule_counts WHERE {scope} GROUP BY rule) AS counts
      JOIN rules ON rules.id = counts.rule
"""
AVOID = """
    SELECT id, statement, condition, dataset_id, session, support, contradiction FROM rules
     WHERE kind = 'avoid' AND knob IS NOT NULL AND (backbone IS NULL OR backbone = :backbone) {narrowed} ORDER BY id
"""
AVOID_COUNTS = """
    SELECT rule, sum(support), sum(contradiction) FROM rule_counts
     WHERE rule IN (SELECT value FROM json_each(:rules)) AND ({scope} OR session = :session) GROUP BY rule
"""


class AvoidRule(NamedTuple):
    """A discard heuristic; a full memory has hundreds of a knob, so this is all that is read of it."""

    id: int
    statement: str
    condition: str
    dataset_id: str
    session: str
    support: int
    contradiction: int


class Knowledge(Part):
    """What sessions on `datasets`, or all sessions where none is named, have left for later ones."""

    def __init__(self, database: MemoryDatabase, rules: Rules, datasets: Iterable[str]) -> None:
        super().__init__(database)
        self._rules = rules
        self._datasets = {f"dataset{number}": name for number, name in enumerate(datasets)}
        places = ", ".join(f":{place}" for place in self._datasets)
        self._scope = f"dataset IN ({places})" if self._datasets else "TRUE"
        self._pooled: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {}

    @reads
    def sources(self) -> list[str]:
        """The names of the datasets that any rule or summary comes from, in order."""
        return [name for (name,) in self._execute("""
            SELECT dataset FROM summaries WHERE {scope} UNION
            SELECT dataset FROM rules WHERE dataset <> '' AND {scope} ORDER BY dataset
        """)]

    @reads
    def search(self, query: str, limit: int = 20) -> list[dict[str, Any]]:
        """Rules, reflections and summaries with any of the words of `query`, best first; any text is a valid query."""
        words = re.findall(r"\w+", query)[:QUERY_WORDS]
        if not words or limit < 1:
            return []
        match = " OR ".join(f'"{word}"' for word in words)  # quoted: never read as FTS5 syntax
        return [_found(row) for row in self._rows(SEARCH, words=match, limit=limit, matches=MATCHES)]

    @reads
    def prior(
        self,
        profile: Mapping[str, Any],
        dataset_id: str,
        backbone: str,
        limit: int = 10,
        *,
        kinds: Sequence[RuleKind] = ALL_KINDS,
    ) -> list[dict[str, Any]]:
        """The rules that bear on a dataset and backbone, best first; contradicted and retired ones are left out.

        Rank = backbone match x profile similarity x confidence (`rules.confidence`), by the counts of sessions in
        scope.
        """
        rows = self._execute(
            RANKED.replace("{counted}", SCOPED_COUNTS if self._datasets else ALL_COUNTS),
            similar=to_json(self.similarities(profile, dataset_id)),
            backbone=backbone,
            **BACKBONE_MATCH,
            kinds=to_json(list(kinds)),
            retired=RETIRED,
            limit=max(limit, 0),
        )
        return [
            _quoted(recounted(self._rules.get(rule), support, against), similarity)
            for rule, support, against, similarity in rows
        ]

    @reads
    def portfolio(
        self, profile: Mapping[str, Any], dataset_id: str, backbone: str, limit: int = 5
    ) -> list[dict[str, Any]]:
        """Up to `limit` configurations that did well on similar datasets (`portfolio.choose`)."""
        similar = self.similarities(profile, dataset_id)
        chosen = choose(self._best_runs(backbone, similar), similar, limit)
        return [_entry(self._configuration(run), similar) for run in chosen]

    @reads
    def similarities(self, profile: Mapping[str, Any], dataset_id: str) -> dict[str, float]:
        """How alike each known dataset (in scope or not) is to one with this profile; the same dataset is 1."""
        own = to_json(dict(profile))
        return {
            source: 1.0 if dataset_id and source == dataset_id else text_similarity(own, other)
            for source, other in self.db.execute("SELECT source, profile FROM datasets").fetchall()
        }

    @reads
    def pooled_effects(self, backbone: str) -> dict[str, dict[str, Any]]:
        """Per knob: {n, datasets, mean_relative, se, interval, values: [{value, n, mean_relative, se}, ...]}.

        `pooling.py` has the formulas. The result is not to be changed by the caller: it is kept until a session with
        this backbone closes, which raises the number of measured effects.
        """
        query = "SELECT coalesce(sum(n), 0) FROM effect_totals WHERE backbone = ?"
        (measured,) = self.db.execute(query, [backbone]).fetchone()
        if backbone not in self._pooled or self._pooled[backbone][0] != measured:
            self._pooled[backbone] = measured, self._pool(backbone)
        return self._pooled[backbone][1]

    @reads
    def latest_rules(self, backbone: str, limit: int = 50) -> list[RuleRecord]:
        """The newest `limit` rules that hold for a backbone, the oldest of them first."""
        query = (
            f"SELECT {RULE_COLUMNS} FROM rules WHERE (backbone IS NULL OR backbone = :backbone) AND {{scope}} "
            "ORDER BY id DESC LIMIT :limit"
        )
        return [rule_record(row) for row in self._rows(query, backbone=backbone, limit=limit)][::-1]

    @reads
    def latest_summaries(self, limit: int = 10) -> list[SummaryRecord]:
        """The newest `limit` Cognition Summaries, the oldest of them first."""
        query = f"SELECT {SUMMARY_COLUMNS} FROM summaries WHERE {{scope}} ORDER BY id DESC LIMIT :limit"
        return [summary_record(row) for row in self._rows(query, limit=limit)][::-1]

    @reads
    def avoid_rules(
        self, backbone: str, knobs: Collection[str] | None = None, *, session: str = ""
    ) -> list[AvoidRule]:
        """The discard heuristics: rules to avoid a condition that the trials support with a confidence of `TRUSTED`.

        With `knobs`, those on these knobs. With datasets named, by the counts of these and of `session` itself.
        """
        narrowed = "" if knobs is None else "AND knob IN (SELECT value FROM json_each(:knobs))"
        narrowed += "" if self._datasets else f" {TRUSTED_ALREADY}"
        query = AVOID.replace("{narrowed}", narrowed)
        found = [AvoidRule(*row) for row in self._execute(query, backbone=backbone, knobs=to_json(list(knobs or ())))]
        if self._datasets:
            rows = self._execute(AVOID_COUNTS, rules=to_json([rule.id for rule in found]), session=session)
            counts = {rule: {"support": support, "contradiction": against} for rule, support, against in rows}
            found = [rule._replace(**counts[rule.id]) for rule in found if rule.id in counts]
        return [rule for rule in found if confidence(rule.support, rule.contradiction) >= TRUSTED]

    def _execute(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query in which {scope} stands for the condition on the datasets."""
        return self.db.execute(query.replace("{scope}", self._scope), values | self._datasets).fetchall()

    def _rows(self, query: str, **values: Any) -> list[Row]:
        """The same with the names of the columns."""
        return list(self.db.query(query.replace("{scope}", self._scope), values | self._datasets))

    def _pool(self, backbone: str) -> dict[str, dict[str, Any]]:
        values: dict[str, dict[str, Sums]] = defaultdict(dict)
        for knob, value, *sums in self._execute("""
            SELECT knob, value, sum(n), count(*), sum(weight), sum(weighted), sum(weighted * weighted / weight)
              FROM effect_totals WHERE backbone = :backbone AND {scope} GROUP BY knob, value ORDER BY knob, value
        """, backbone=backbone):
            values[knob][value] = Sums(*sums)
        num_datasets = dict(self._execute("""
            SELECT knob, count(DISTINCT dataset) FROM effect_totals WHERE backbone = :backbone AND {scope} GROUP BY knob
        """, backbone=backbone))
        return {knob: pooled_effect(of, num_datasets[knob]) for knob, of in values.items()}

    def _best_runs(self, backbone: str, similar: Mapping[str, float]) -> list[Run]:
        """The best configurations of the most similar datasets that have any, best first within each dataset."""
        query = f"""
            SELECT session, trial, dataset_id, config_hash FROM configurations
             WHERE backbone = :backbone AND dataset_id = :source AND {{scope}}
             ORDER BY ndcg DESC, session, trial LIMIT {PER_DATASET}
        """
        found: list[Run] = []
        seen = 0
        for source in sorted(similar, key=lambda key: (-similar[key], key)):
            runs = [Run(*row) for row in self._execute(query, backbone=backbone, source=source)]
            found += runs
            seen += bool(runs)
            if seen == NEAREST:
                break
        return found

    def _configuration(self, run: Run) -> ConfigurationRecord:
        query = f"SELECT {CONFIGURATION_COLUMNS} FROM configurations WHERE session = ? AND trial = ?"
        (row,) = self.db.query(query, [run.session, run.trial])
        return ConfigurationRecord.model_validate(from_row(row, ["config"]))


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


def _found(row: Row) -> dict[str, Any]:
    shown = {name: value for name, value in row.items() if value is not None and name != "score"}
    return {**shown, "text": quote(row["text"], QUOTE_LIMIT)}
