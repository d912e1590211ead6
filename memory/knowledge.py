"""Knowledge of earlier sessions for new ones: full-text search, ranked rules, pooled effects, top configurations.

`Memory.knowledge(datasets)` is a view of memory.db. If datasets are given, every query is restricted to knowledge from
sessions on these datasets (the scope). The view stores the condition, so queries do not take it as an argument. SQL
views and temporary tables are unsuitable: threads with different scopes share one connection, and every read would have
to write first. Without datasets, the condition is the constant TRUE, which SQLite removes, so that the queries use
their indexes.

All figures are validation figures, like everything in memory.db. Text by agents is returned quoted and bounded, with
the numbers masked that no recorded figure of its session bears out. A query cannot search for numbers either.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from ..models.config import knob_words, knobs_named
from .database import MemoryDatabase, Repository, reads
from .measurements import CONFIGURATION_COLUMNS, CURVE_COLUMNS
from .pooling import Sums, pooled_effect
from .portfolio import Run, choose
from .recorded import Figures
from .records import ConfigurationRecord, CurveRecord, RuleKind, RuleRecord, SummaryRecord
from .rows import Row, from_row, to_json
from .rules import RULE_COLUMNS, Rules, confidence, rule_record, with_counts
from .similarity import text_similarity
from .summaries import SUMMARY_COLUMNS, summary_record
from .text import quote

QUOTE_LIMIT = 400
FIGURE_DIGITS = 3
MAX_QUERY_WORDS = 32  # additional words would only slow the search down
ALL_KINDS: tuple[RuleKind, ...] = get_args(RuleKind)
BACKBONE_MATCH = {"same": 1.0, "both": 0.9, "other": 0.5}
RETIRED_CONFIDENCE = 0.25
"""Rules with at most this confidence are not returned by `prior`."""
TRUSTED_CONFIDENCE = 2 / 3
"""An `avoid` rule with a condition blocks trials from this confidence on: support >= 2 * contradiction + 1."""
TRUSTED_SQL = "AND \"check\" = 'supported' AND support >= 2 * contradiction + 1"  # the same condition in SQL
CONFIGURATIONS_PER_DATASET = 8
"""A portfolio is selected from this many top configurations of each dataset."""
MAX_DATASETS = 12
"""A portfolio is selected from configurations of this many of the most similar datasets."""
MAX_MATCHES = 2000  # only the newest matches are ranked, because every text may contain a common word
NAMED_RANK = -4.0  # of a rule on a knob that the query names; bm25 gives rare words about this rank, lower = better
SEARCH = """
    WITH rule_hits AS (
             SELECT rowid, min(rank) AS rank FROM (
                 SELECT * FROM (SELECT rowid, rank FROM rules_fts WHERE rules_fts MATCH :words
                                 ORDER BY rowid DESC LIMIT :matches)
                 UNION ALL
                 SELECT * FROM (SELECT id, :named FROM rules WHERE knob IN (SELECT value FROM json_each(:knobs))
                                 ORDER BY id DESC LIMIT :matches)
             ) GROUP BY rowid
         ),
         reflection_hits AS (
             SELECT rowid, rank FROM reflections_fts WHERE reflections_fts MATCH :words
              ORDER BY rowid DESC LIMIT :matches
         ),
         summary_hits AS (
             SELECT rowid, rank FROM summaries_fts WHERE summaries_fts MATCH :words ORDER BY rowid DESC LIMIT :matches
         )
    SELECT * FROM (
    SELECT 'rule' AS source, rules.id, session, NULL AS trial, dataset, backbone, kind, condition,
           "check", rules.statement AS text, rule_hits.rank AS score
      FROM rule_hits JOIN rules ON rules.id = rule_hits.rowid
    UNION ALL
    SELECT 'reflection', reflections.id, reflections.session, trial, dataset, backbone, NULL, NULL,
           "check", reflections.lesson, reflection_hits.rank
      FROM reflection_hits JOIN reflections ON reflections.id = reflection_hits.rowid AND NOT after_reveal
      JOIN sessions ON sessions.id = reflections.session
    UNION ALL
    SELECT 'summary', summaries.id, session, NULL, dataset, backbone, NULL, NULL, NULL, summaries.text,
           summary_hits.rank
      FROM summary_hits JOIN summaries ON summaries.id = summary_hits.rowid
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

SUPPORTERS = """
    SELECT rule, session, dataset_id FROM rule_counts
     WHERE rule IN (SELECT value FROM json_each(:rules)) AND support > contradiction
       AND ({scope} OR session = :session)
"""


class AvoidRule(NamedTuple):
    """A discard heuristic. A large memory has hundreds per knob, so only these fields are read."""

    id: int
    statement: str
    condition: str
    dataset_id: str
    session: str
    support: int
    contradiction: int


class Knowledge(Repository):
    """The knowledge from sessions on `datasets`, or from all sessions if `datasets` is empty."""

    def __init__(self, database: MemoryDatabase, rules: Rules, figures: Figures, datasets: Iterable[str]) -> None:
        super().__init__(database)
        self._rules = rules
        self._figures = figures
        self._datasets = {f"dataset{number}": name for number, name in enumerate(datasets)}
        parameters = ", ".join(f":{name}" for name in self._datasets)
        self._scope = f"dataset IN ({parameters})" if self._datasets else "TRUE"
        self._pooled: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {}

    @reads
    def sources(self) -> list[str]:
        """The sorted names of the datasets from which rules or summaries come."""
        return [name for (name,) in self._execute("""
            SELECT dataset FROM summaries WHERE {scope} UNION
            SELECT dataset FROM rules WHERE dataset <> '' AND {scope} ORDER BY dataset
        """)]

    @reads
    def search(self, query: str, limit: int = 20) -> list[dict[str, Any]]:
        """Rules, reflections and summaries that contain a word of `query`, best first; any text is a valid query.

        A query that names a knob, in whatever words, finds the rules on this knob and its other names in the texts.
        """
        words = [word for word in re.findall(r"\w+", query) if not _is_figure(word)][:MAX_QUERY_WORDS]
        if not words or limit < 1:
            return []
        knobs = knobs_named(" ".join(words))
        phrases = [*words, *(phrase for knob in knobs for phrase in knob_words(knob))]
        match = " OR ".join(f'"{phrase}"' for phrase in phrases)  # quoted, so that none is parsed as FTS5 syntax
        rows = self._rows(
            SEARCH, words=match, knobs=to_json(knobs), named=NAMED_RANK, limit=limit, matches=MAX_MATCHES
        )
        return [self._search_entry(row) for row in rows]

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
        """The rules for a dataset and backbone, best first, without contradicted and retired rules.

        Score = backbone match x profile similarity x confidence (`rules.confidence`), with the counts of the sessions
        in scope.
        """
        rows = self._execute(
            RANKED.replace("{counted}", SCOPED_COUNTS if self._datasets else ALL_COUNTS),
            similar=to_json(self.similarities(profile, dataset_id)),
            backbone=backbone,
            **BACKBONE_MATCH,
            kinds=to_json(list(kinds)),
            retired=RETIRED_CONFIDENCE,
            limit=max(limit, 0),
        )
        return [
            self._prior_entry(with_counts(self._rules.get(rule), support, against), similarity)
            for rule, support, against, similarity in rows
        ]

    @reads
    def portfolio(
        self, profile: Mapping[str, Any], dataset_id: str, backbone: str, limit: int = 5
    ) -> list[dict[str, Any]]:
        """Up to `limit` top configurations of similar datasets (`portfolio.choose`)."""
        similar = self.similarities(profile, dataset_id)
        chosen = choose(self._best_runs(backbone, similar), similar, limit)
        return [_portfolio_entry(self._configuration(run), similar) for run in chosen]

    @reads
    def similarities(self, profile: Mapping[str, Any], dataset_id: str) -> dict[str, float]:
        """Similarity of every known dataset, in scope or not, to the one with this profile, which itself has 1."""
        own = to_json(dict(profile))
        return {
            source: 1.0 if dataset_id and source == dataset_id else text_similarity(own, other)
            for source, other in self.db.execute("SELECT source, profile FROM datasets").fetchall()
        }

    @reads
    def pooled_effects(self, backbone: str) -> dict[str, dict[str, Any]]:
        """Per knob: {n, datasets, mean_relative, se, interval, values: [{value, n, mean_relative, se}, ...]}.

        `pooling.py` has the formulas. The caller must not modify the result: it is cached until a session with this
        backbone closes, which increases the number of measured effects.
        """
        query = "SELECT coalesce(sum(n), 0) FROM effect_totals WHERE backbone = ?"
        (measured,) = self.db.execute(query, [backbone]).fetchone()
        if backbone not in self._pooled or self._pooled[backbone][0] != measured:
            self._pooled[backbone] = measured, self._pool(backbone)
        return self._pooled[backbone][1]

    @reads
    def latest_rules(self, backbone: str, limit: int = 50) -> list[RuleRecord]:
        """The newest `limit` rules for a backbone or for both, oldest first."""
        query = (
            f"SELECT {RULE_COLUMNS} FROM rules WHERE (backbone IS NULL OR backbone = :backbone) AND {{scope}} "
            "ORDER BY id DESC LIMIT :limit"
        )
        return [rule_record(row) for row in self._rows(query, backbone=backbone, limit=limit)][::-1]

    @reads
    def latest_summaries(self, limit: int = 10) -> list[SummaryRecord]:
        """The newest `limit` Cognition Summaries, oldest first."""
        query = f"SELECT {SUMMARY_COLUMNS} FROM summaries WHERE {{scope}} ORDER BY id DESC LIMIT :limit"
        return [summary_record(row) for row in self._rows(query, limit=limit)][::-1]

    @reads
    def curves(self, backbone: str, limit: int = 500) -> list[CurveRecord]:
        """The newest `limit` learning curves of closed sessions with this backbone, oldest first."""
        query = (
            f"SELECT {CURVE_COLUMNS} FROM curves WHERE backbone = :backbone AND {{scope}} ORDER BY rowid DESC "
            "LIMIT :limit"
        )
        rows = self._rows(query, backbone=backbone, limit=limit)
        return [CurveRecord.model_validate(from_row(row, ["config", "epochs", "ndcg10"])) for row in rows][::-1]

    @reads
    def avoid_rules(
        self, backbone: str, knobs: Collection[str] | None = None, *, session: str = ""
    ) -> list[AvoidRule]:
        """The discard heuristics: `avoid` rules with a condition and a confidence of at least `TRUSTED_CONFIDENCE`.

        If `knobs` is given, only rules on these knobs. With a scope, the counts of the sessions in scope and of
        `session` itself determine the confidence.
        """
        narrowed = "" if knobs is None else "AND knob IN (SELECT value FROM json_each(:knobs))"
        narrowed += "" if self._datasets else f" {TRUSTED_SQL}"
        query = AVOID.replace("{narrowed}", narrowed)
        found = [AvoidRule(*row) for row in self._execute(query, backbone=backbone, knobs=to_json(list(knobs or ())))]
        if self._datasets:
            rows = self._execute(AVOID_COUNTS, rules=to_json([rule.id for rule in found]), session=session)
            counts = {rule: {"support": support, "contradiction": against} for rule, support, against in rows}
            found = [rule._replace(**counts[rule.id]) for rule in found if rule.id in counts]
        return [rule for rule in found if confidence(rule.support, rule.contradiction) >= TRUSTED_CONFIDENCE]

    @reads
    def supporters(self, rules: Collection[int], *, session: str = "") -> dict[int, dict[str, str]]:
        """Per rule: the sessions with more trials for it than against it, with the ids of their datasets.

        Of the sessions in scope, and `session` itself.
        """
        found: dict[int, dict[str, str]] = defaultdict(dict)
        for rule, owner, dataset_id in self._execute(SUPPORTERS, rules=to_json(list(rules)), session=session):
            found[rule][owner] = dataset_id
        return found

    @reads
    def offered(self, sessions: Collection[str]) -> dict[str, frozenset[str]]:
        """The knobs that closed sessions could vary; without those of which no configuration is stored."""
        rows = self._execute(
            "SELECT session, config FROM configurations WHERE session IN (SELECT value FROM json_each(:sessions))",
            sessions=to_json(list(sessions)),
        )
        return {session: frozenset(json.loads(config)) for session, config in rows}

    def _execute(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """Execute a query, with {scope} replaced by the condition on the datasets; returns tuples."""
        return self.db.execute(query.replace("{scope}", self._scope), values | self._datasets).fetchall()

    def _rows(self, query: str, **values: Any) -> list[Row]:
        """Like `_execute`, but returns rows with column names."""
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
        return {knob: pooled_effect(sums, num_datasets[knob]) for knob, sums in values.items()}

    def _best_runs(self, backbone: str, similar: Mapping[str, float]) -> list[Run]:
        """The top configurations of the most similar datasets that have any, best first within each dataset."""
        query = f"""
            SELECT session, trial, dataset_id, config_hash FROM configurations
             WHERE backbone = :backbone AND dataset_id = :source AND {{scope}}
             ORDER BY ndcg DESC, session, trial LIMIT {CONFIGURATIONS_PER_DATASET}
        """
        found: list[Run] = []
        num_datasets = 0
        for source in sorted(similar, key=lambda key: (-similar[key], key)):
            runs = [Run(*row) for row in self._execute(query, backbone=backbone, source=source)]
            found += runs
            num_datasets += bool(runs)
            if num_datasets == MAX_DATASETS:
                break
        return found

    def _prior_entry(self, rule: RuleRecord, similarity: float) -> dict[str, Any]:
        fields = rule.model_dump(include={"id", "kind", "condition", "backbone", "dataset", "check", "session"})
        return {
            **fields,
            "statement": quote(self._figures.mask(rule.statement, rule.session), QUOTE_LIMIT),
            "support": rule.support,
            "contradiction": rule.contradiction,
            "confidence": round(confidence(rule.support, rule.contradiction), 4),
            "similarity": round(similarity, 4),
        }

    def _search_entry(self, row: Row) -> dict[str, Any]:
        fields = {name: value for name, value in row.items() if value is not None and name != "score"}
        return {**fields, "text": quote(self._figures.mask(row["text"], row["session"]), QUOTE_LIMIT)}

    def _configuration(self, run: Run) -> ConfigurationRecord:
        query = f"SELECT {CONFIGURATION_COLUMNS} FROM configurations WHERE session = ? AND trial = ?"
        (row,) = self.db.query(query, [run.session, run.trial])
        return ConfigurationRecord.model_validate(from_row(row, ["config"]))


def _portfolio_entry(record: ConfigurationRecord, similar: Mapping[str, float]) -> dict[str, Any]:
    return {
        **record.model_dump(include={"dataset", "session", "trial", "config", "gain"}),
        "ndcg@10": record.ndcg,
        "similarity": round(similar[record.dataset_id], 4),
    }


def _is_figure(word: str) -> bool:
    """Whether a word of a query is a number of three or more digits, for which texts are not searched."""
    return len(word) >= FIGURE_DIGITS and all(character.isnumeric() or character == "_" for character in word)
