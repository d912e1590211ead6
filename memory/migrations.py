"""The schema of memory.db as a series of migrations. A released migration is never edited.

The schema itself enforces the invariants, whatever the callers do: session states go one way, a session has at most
`parallel` running trials, a trial ends once, and a session that is not open accepts no trials or reflections.
"""

import json

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from .curves_schema import add_curves
from .first_schema import FIRST_TABLES
from .ledger_schema import LEDGER_TABLES
from .text import content_key, source_key
from .trials_schema import TRIALS_MAY_BE_STOPPED

MIGRATIONS = Migrations("virtualmle.memory")


@MIGRATIONS()
def m001_tables(db: Database) -> None:
    """Short-term memory (sessions, trials, reflections) and long-term memory (rules, summaries)."""
    db.executescript(FIRST_TABLES)


@MIGRATIONS()
def m002_full_text(db: Database) -> None:
    """Full-text indexes on the texts of agents, updated by triggers."""
    for table, column in (("rules", "statement"), ("reflections", "lesson"), ("summaries", "text")):
        db.table(table).enable_fts([column], create_triggers=True, tokenize="porter unicode61")


@MIGRATIONS()
def m003_rule_counts(db: Database) -> None:
    """Counts per rule and session, so that counting the same session twice has no effect."""
    db.executescript("""
        CREATE TABLE rule_counts (
            rule INTEGER NOT NULL REFERENCES rules (id) ON DELETE CASCADE,
            session TEXT NOT NULL,
            support INTEGER NOT NULL CHECK (support >= 0),
            contradiction INTEGER NOT NULL CHECK (contradiction >= 0),
            evidence TEXT NOT NULL CHECK (json_valid(evidence)),
            PRIMARY KEY (rule, session)
        );
        INSERT INTO rule_counts (rule, session, support, contradiction, evidence)
            SELECT id, session, support, contradiction, evidence FROM rules;
    """)


@MIGRATIONS()
def m004_guards(db: Database) -> None:
    """Triggers that enforce one-way transitions in the database itself."""
    db.executescript("""
        CREATE TRIGGER sessions_one_way BEFORE UPDATE OF state ON sessions
        WHEN (OLD.state || '>' || NEW.state) NOT IN
             ('open>frozen', 'frozen>attempted', 'frozen>void', 'attempted>revealed', 'attempted>void')
        BEGIN SELECT RAISE(ABORT, 'session states go one way'); END;

        CREATE TRIGGER trials_while_open BEFORE INSERT ON trials
        WHEN (SELECT state FROM sessions WHERE id = NEW.session) <> 'open'
        BEGIN SELECT RAISE(ABORT, 'a session that is not open takes no trials'); END;

        CREATE TRIGGER trials_end_once BEFORE UPDATE ON trials
        WHEN OLD.status <> 'running'
        BEGIN SELECT RAISE(ABORT, 'a trial that has ended does not change'); END;

        CREATE TRIGGER reflections_while_open BEFORE INSERT ON reflections
        WHEN (SELECT state FROM sessions WHERE id = NEW.session) <> 'open'
        BEGIN SELECT RAISE(ABORT, 'a session that is not open takes no reflections'); END;
    """)


@MIGRATIONS()
def m005_sessions_know_their_memory(db: Database) -> None:
    """The knowledge that a session may use, the cost of its language model, and the id of this memory."""
    db.executescript("""
        ALTER TABLE sessions ADD COLUMN memory_from TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(memory_from));
        ALTER TABLE sessions ADD COLUMN placebo INTEGER NOT NULL DEFAULT 0 CHECK (placebo IN (0, 1));
        ALTER TABLE sessions ADD COLUMN max_llm_usd REAL;
        ALTER TABLE sessions ADD COLUMN llm_usd REAL NOT NULL DEFAULT 0 CHECK (llm_usd >= 0);
        -- Names this memory in files that carry its knowledge elsewhere, where sessions may bear the same ids.
        CREATE TABLE origin (id TEXT NOT NULL);
        INSERT INTO origin VALUES (lower(hex(randomblob(6))));
    """)


@MIGRATIONS()
def m006_reflections_merge(db: Database) -> None:
    """Reflections: cause, claimed effect, reference to an equal one; `unverified` becomes `unsupported`."""
    db.table("reflections").disable_fts()
    db.executescript("""
        CREATE TABLE reflections_wider (
            id INTEGER PRIMARY KEY,
            session TEXT NOT NULL,
            trial TEXT NOT NULL,
            what_changed TEXT NOT NULL,
            verdict TEXT NOT NULL CHECK (verdict IN ('keep', 'discard', 'crash')),
            helped TEXT NOT NULL CHECK (helped IN ('yes', 'no', 'unclear')),
            dimension TEXT NOT NULL,
            effect REAL,
            evidence TEXT NOT NULL CHECK (json_valid(evidence)),
            cause TEXT NOT NULL,
            lesson TEXT NOT NULL,
            next_step TEXT NOT NULL,
            "check" TEXT NOT NULL CHECK ("check" IN ('supported', 'contradicted', 'unsupported')),
            check_note TEXT NOT NULL,
            merged_into TEXT,
            times_said INTEGER NOT NULL DEFAULT 1 CHECK (times_said > 0),
            created_at TEXT NOT NULL,
            UNIQUE (session, trial),
            FOREIGN KEY (session, trial) REFERENCES trials (session, handle)
        );
        INSERT INTO reflections_wider (id, session, trial, what_changed, verdict, helped, dimension, evidence, cause,
                                       lesson, next_step, "check", check_note, created_at)
            SELECT id, session, trial, what_changed, verdict, helped, dimension, evidence, '', lesson, next_step,
                   replace("check", 'unverified', 'unsupported'), check_note, created_at FROM reflections;
        DROP TABLE reflections;
        ALTER TABLE reflections_wider RENAME TO reflections;
        CREATE TRIGGER reflections_while_open BEFORE INSERT ON reflections
        WHEN (SELECT state FROM sessions WHERE id = NEW.session) <> 'open'
        BEGIN SELECT RAISE(ABORT, 'a session that is not open takes no reflections'); END;
    """)
    db.table("reflections").enable_fts(["lesson"], create_triggers=True, tokenize="porter unicode61")


@MIGRATIONS()
def m007_rules_are_found_by_what_they_are_about(db: Database) -> None:
    """Index rules by knob, content words and source; store the dataset of every count."""
    db.executescript("""
        CREATE TABLE datasets (
            source TEXT PRIMARY KEY,
            profile TEXT NOT NULL CHECK (json_valid(profile))
        ) WITHOUT ROWID;
        ALTER TABLE rules ADD COLUMN source TEXT NOT NULL DEFAULT '';
        ALTER TABLE rules ADD COLUMN words TEXT NOT NULL DEFAULT '';
        ALTER TABLE rules ADD COLUMN knob TEXT;
        ALTER TABLE rule_counts ADD COLUMN dataset TEXT NOT NULL DEFAULT '';
        ALTER TABLE rule_counts ADD COLUMN dataset_id TEXT NOT NULL DEFAULT '';
        UPDATE rule_counts SET dataset = sessions.dataset, dataset_id = sessions.dataset_id
            FROM sessions WHERE sessions.id = rule_counts.session;
        INSERT OR IGNORE INTO datasets SELECT dataset_id, profile FROM sessions;
    """)
    for row in list(db.query("SELECT id, statement, condition, dataset_id, profile FROM rules")):
        source = source_key(row["dataset_id"], json.loads(row["profile"]))
        db.execute("INSERT OR IGNORE INTO datasets VALUES (?, ?)", [source, row["profile"]])
        knob = row["condition"].split()[0] if row["condition"] else None
        words = content_key(row["statement"])
        db.execute("UPDATE rules SET source = ?, words = ?, knob = ? WHERE id = ?", [source, words, knob, row["id"]])
    db.executescript("""
        DROP INDEX rules_by_kind;
        CREATE INDEX rules_by_condition ON rules (kind, backbone, condition);
        CREATE INDEX rules_by_words ON rules (kind, backbone, words);
        CREATE INDEX rules_by_knob ON rules (knob, backbone, kind);
        CREATE INDEX rules_ranked ON rules (source, backbone, kind, "check", support, contradiction);
        CREATE INDEX rule_counts_by_dataset ON rule_counts (dataset, rule, support, contradiction);
        CREATE INDEX rule_counts_by_session ON rule_counts (session, rule);
    """)


@MIGRATIONS()
def m008_closed_sessions_teach(db: Database) -> None:
    """Effects of closed sessions, for pooling. For sessions closed earlier, only configurations are known."""
    db.executescript("""
        CREATE TABLE effects (
            session TEXT NOT NULL,
            dataset TEXT NOT NULL,
            dataset_id TEXT NOT NULL,
            backbone TEXT NOT NULL,
            knob TEXT NOT NULL,
            value TEXT NOT NULL CHECK (json_valid(value)),
            n INTEGER NOT NULL CHECK (n > 0),
            weight REAL NOT NULL CHECK (weight > 0),
            weighted REAL NOT NULL,
            PRIMARY KEY (session, knob, value)
        ) WITHOUT ROWID;
        CREATE TABLE effect_totals (
            backbone TEXT NOT NULL,
            knob TEXT NOT NULL,
            value TEXT NOT NULL,
            dataset TEXT NOT NULL,
            n INTEGER NOT NULL,
            weight REAL NOT NULL,
            weighted REAL NOT NULL,
            PRIMARY KEY (backbone, knob, value, dataset)
        ) WITHOUT ROWID;
        CREATE TRIGGER effects_add_up AFTER INSERT ON effects
        BEGIN
            INSERT INTO effect_totals VALUES
                (NEW.backbone, NEW.knob, NEW.value, NEW.dataset, NEW.n, NEW.weight, NEW.weighted)
            ON CONFLICT DO UPDATE SET
                n = n + excluded.n, weight = weight + excluded.weight, weighted = weighted + excluded.weighted;
        END;

        CREATE TABLE configurations (
            session TEXT NOT NULL,
            trial TEXT NOT NULL,
            dataset TEXT NOT NULL,
            dataset_id TEXT NOT NULL,
            backbone TEXT NOT NULL,
            config TEXT NOT NULL CHECK (json_valid(config)),
            config_hash TEXT NOT NULL,
            ndcg REAL NOT NULL,
            gain REAL,
            PRIMARY KEY (session, trial)
        );
        CREATE INDEX configurations_by_dataset ON configurations (backbone, dataset_id, ndcg DESC);
        INSERT INTO configurations
            SELECT session, handle, dataset, dataset_id, backbone, config, config_hash, ndcg, NULL FROM (
                SELECT trials.session, handle, dataset, dataset_id, backbone, config, config_hash,
                       json_extract(metrics, '$."ndcg@10"') AS ndcg,
                       row_number() OVER (
                           PARTITION BY trials.session ORDER BY json_extract(metrics, '$."ndcg@10"') DESC, number
                       ) AS place
                  FROM trials JOIN sessions ON sessions.id = trials.session
                 WHERE sessions.state <> 'open' AND trials.status = 'finished'
            ) WHERE place <= 5 AND ndcg IS NOT NULL;
    """)


@MIGRATIONS()
def m009_trusted_heuristics_at_hand(db: Database) -> None:
    """A covering index for the discard heuristics, which every state digest reads completely and in order."""
    db.executescript("""
        CREATE INDEX rules_trusted ON rules
            (kind, id, backbone, knob, condition, dataset_id, session, support, contradiction, statement)
            WHERE kind = 'avoid' AND knob IS NOT NULL AND "check" = 'supported' AND support >= 2 * contradiction + 1;
    """)


@MIGRATIONS()
def m010_calls_of_language_models(db: Database) -> None:
    """The cost ledger: one row per call of a language model; and what models were found not to accept."""
    db.executescript(LEDGER_TABLES)


@MIGRATIONS()
def m011_claims_can_be_corrected(db: Database) -> None:
    """Earlier versions of amended reflections, other statements of a rule, and the proposal that a trial followed."""
    db.executescript("""
        CREATE TABLE earlier_reflections (
            session TEXT NOT NULL,
            trial TEXT NOT NULL,
            version INTEGER NOT NULL CHECK (version > 0),
            helped TEXT NOT NULL CHECK (helped IN ('yes', 'no', 'unclear')),
            dimension TEXT NOT NULL,
            effect REAL,
            evidence TEXT NOT NULL CHECK (json_valid(evidence)),
            cause TEXT NOT NULL,
            lesson TEXT NOT NULL,
            next_step TEXT NOT NULL,
            "check" TEXT NOT NULL CHECK ("check" IN ('supported', 'contradicted', 'unsupported')),
            check_note TEXT NOT NULL,
            created_at TEXT NOT NULL,
            PRIMARY KEY (session, trial, version),
            FOREIGN KEY (session, trial) REFERENCES trials (session, handle)
        ) WITHOUT ROWID;
        CREATE TRIGGER reflections_change_while_open BEFORE UPDATE ON reflections
        WHEN (SELECT state FROM sessions WHERE id = NEW.session) <> 'open'
        BEGIN SELECT RAISE(ABORT, 'a session that is not open takes no reflections'); END;
        CREATE TRIGGER earlier_reflections_stay BEFORE UPDATE ON earlier_reflections
        BEGIN SELECT RAISE(ABORT, 'earlier reflections stay on record'); END;
        CREATE TRIGGER earlier_reflections_are_kept BEFORE DELETE ON earlier_reflections
        BEGIN SELECT RAISE(ABORT, 'earlier reflections stay on record'); END;

        ALTER TABLE rules ADD COLUMN times_said INTEGER NOT NULL DEFAULT 1 CHECK (times_said > 0);
        CREATE TABLE rule_statements (
            id INTEGER PRIMARY KEY,
            rule INTEGER NOT NULL REFERENCES rules (id) ON DELETE CASCADE,
            statement TEXT NOT NULL,
            condition TEXT,
            session TEXT NOT NULL,
            created_at TEXT NOT NULL
        );
        CREATE INDEX rule_statements_by_rule ON rule_statements (rule);

        ALTER TABLE trials ADD COLUMN proposal TEXT CHECK (proposal IS NULL OR json_valid(proposal));
    """)


@MIGRATIONS()
def m013_a_trial_may_sweep_several_settings(db: Database) -> None:
    """The settings of a sweep; NULL for a trial of one configuration."""
    db.executescript("""
        ALTER TABLE trials ADD COLUMN sweep TEXT CHECK (sweep IS NULL OR json_valid(sweep));
        CREATE INDEX trials_by_configuration ON trials (config_hash, status);
    """)


@MIGRATIONS()
def m014_sessions_may_be_replayed(db: Database) -> None:
    """A session may be served from a replay table; the column holds the table's path, digest and provenance."""
    db.executescript("""
        ALTER TABLE sessions ADD COLUMN replay TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(replay));
    """)


@MIGRATIONS()
def m015_trials_may_be_stopped_and_run_side_by_side(db: Database) -> None:
    """Status `stopped`, several running trials per session, and trials that repeat another one for a confirmation."""
    db.executescript(TRIALS_MAY_BE_STOPPED)


@MIGRATIONS()
def m016_learning_curves_outlive_their_session(db: Database) -> None:
    """Learning curves of trials that trained to their end, in closed sessions, as `racing` uses them."""
    add_curves(db)


@MIGRATIONS()
def m018_trials_have_places_and_an_order_of_ending(db: Database) -> None:
    """The place of a trial among those that run, the incumbent at its start, and the order in which trials ended."""
    db.executescript("""
        ALTER TABLE sessions ADD COLUMN auto_parallel INTEGER NOT NULL DEFAULT 0 CHECK (auto_parallel IN (0, 1));
        ALTER TABLE trials ADD COLUMN place INTEGER NOT NULL DEFAULT 0 CHECK (place >= 0);
        ALTER TABLE trials ADD COLUMN incumbent_at_start TEXT;
        ALTER TABLE trials ADD COLUMN ended INTEGER CHECK (ended > 0);
        CREATE UNIQUE INDEX trials_one_per_place ON trials (session, place) WHERE status = 'running';
        CREATE UNIQUE INDEX trials_end_one_by_one ON trials (session, ended) WHERE ended IS NOT NULL;
    """)


@MIGRATIONS()
def m019_people_may_extend_a_budget(db: Database) -> None:
    """Extensions of the budget of open sessions. They stay on record, and the patience counts anew after one."""
    db.executescript("""
        ALTER TABLE sessions ADD COLUMN patience_after INTEGER NOT NULL DEFAULT 0 CHECK (patience_after >= 0);
        CREATE TABLE extensions (
            id INTEGER PRIMARY KEY,
            session TEXT NOT NULL REFERENCES sessions (id),
            trials INTEGER NOT NULL CHECK (trials >= 0),
            seconds REAL NOT NULL CHECK (seconds >= 0),
            after INTEGER NOT NULL CHECK (after >= 0),
            at TEXT NOT NULL,
            CHECK (trials > 0 OR seconds > 0)
        );
        CREATE INDEX extensions_by_session ON extensions (session);
        CREATE TRIGGER extensions_while_open BEFORE INSERT ON extensions
        WHEN (SELECT state FROM sessions WHERE id = NEW.session) <> 'open'
        BEGIN SELECT RAISE(ABORT, 'a session that is not open is not extended'); END;
        CREATE TRIGGER extensions_do_not_change BEFORE UPDATE ON extensions
        BEGIN SELECT RAISE(ABORT, 'extensions stay on record'); END;
        CREATE TRIGGER extensions_are_kept BEFORE DELETE ON extensions
        BEGIN SELECT RAISE(ABORT, 'extensions stay on record'); END;
    """)


@MIGRATIONS()
def m020_texts_after_a_reveal_stay_with_their_session(db: Database) -> None:
    """Reflections know whether a look at the test set came before them, and texts may stay with their session."""
    db.executescript("""
        ALTER TABLE reflections ADD COLUMN after_reveal INTEGER NOT NULL DEFAULT 0 CHECK (after_reveal IN (0, 1));
        CREATE TABLE kept_texts (
            id INTEGER PRIMARY KEY,
            session TEXT NOT NULL REFERENCES sessions (id),
            kind TEXT NOT NULL CHECK (kind IN ('rule', 'summary')),
            text TEXT NOT NULL,
            created_at TEXT NOT NULL
        );
        CREATE INDEX kept_texts_by_session ON kept_texts (session);
    """)
