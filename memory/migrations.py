"""The schema of memory.db, step by step. A step that was released is never edited: later ones change what it made.

What must hold whatever the code above does is written into the schema: states go one way, a session has one running
trial at most, a trial ends once, and a session that is not open takes no more trials and reflections.
"""

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

MIGRATIONS = Migrations("virtualmle.memory")


@MIGRATIONS()
def m001_tables(db: Database) -> None:
    """Short-term memory (sessions, trials, reflections) and long-term memory (rules, summaries)."""
    db.executescript("""
        CREATE TABLE sessions (
            serial INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE CHECK (id <> ''),
            dataset TEXT NOT NULL,
            dataset_id TEXT NOT NULL,
            backbone TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('open', 'frozen', 'attempted', 'revealed', 'void')),
            seed INTEGER NOT NULL,
            protocol_hash TEXT NOT NULL,
            protocol_text TEXT NOT NULL,
            max_trials INTEGER NOT NULL,
            max_train_seconds REAL NOT NULL,
            with_reflection INTEGER NOT NULL CHECK (with_reflection IN (0, 1)),
            with_memory INTEGER NOT NULL CHECK (with_memory IN (0, 1)),
            profile TEXT NOT NULL CHECK (json_valid(profile)),
            client TEXT NOT NULL,
            selected TEXT,
            opened_at TEXT NOT NULL,
            frozen_at TEXT,
            CHECK ((state = 'open') = (frozen_at IS NULL)),
            CHECK (state <> 'open' OR selected IS NULL),
            FOREIGN KEY (id, selected) REFERENCES trials (session, handle)
        );
        CREATE INDEX sessions_by_dataset ON sessions (dataset_id, backbone);

        CREATE TABLE trials (
            session TEXT NOT NULL REFERENCES sessions (id),
            handle TEXT NOT NULL,
            number INTEGER NOT NULL CHECK (number > 0),
            base TEXT NOT NULL,
            changes TEXT NOT NULL CHECK (json_valid(changes)),
            config TEXT NOT NULL CHECK (json_valid(config)),
            config_hash TEXT NOT NULL,
            train_hash TEXT NOT NULL,
            hypothesis TEXT CHECK (hypothesis IS NULL OR json_valid(hypothesis)),
            override_reason TEXT,
            status TEXT NOT NULL CHECK (status IN ('running', 'finished', 'crashed', 'cancelled')),
            verdict TEXT CHECK (verdict IN ('keep', 'discard', 'crash')),
            reason TEXT,
            cause TEXT,
            metrics TEXT CHECK (metrics IS NULL OR json_valid(metrics)),
            ndcg_se REAL,
            incumbent_before TEXT,
            delta REAL,
            delta_se REAL,
            z REAL,
            base_delta REAL,
            base_delta_se REAL,
            curve TEXT CHECK (curve IS NULL OR json_valid(curve)),
            details TEXT CHECK (details IS NULL OR json_valid(details)),
            parameters INTEGER,
            train_seconds REAL,
            wall_seconds REAL,
            created_at TEXT NOT NULL,
            finished_at TEXT,
            UNIQUE (session, handle),
            UNIQUE (session, number),
            CHECK ((status = 'running') = (finished_at IS NULL)),
            CHECK ((status = 'running') = (metrics IS NULL))
        );
        CREATE UNIQUE INDEX trials_one_running ON trials (session) WHERE status = 'running';
        CREATE INDEX trials_by_config ON trials (session, config_hash);

        CREATE TABLE reflections (
            id INTEGER PRIMARY KEY,
            session TEXT NOT NULL,
            trial TEXT NOT NULL,
            what_changed TEXT NOT NULL,
            verdict TEXT NOT NULL CHECK (verdict IN ('keep', 'discard', 'crash')),
            helped TEXT NOT NULL CHECK (helped IN ('yes', 'no', 'unclear')),
            dimension TEXT NOT NULL,
            evidence TEXT NOT NULL CHECK (json_valid(evidence)),
            lesson TEXT NOT NULL,
            next_step TEXT NOT NULL,
            "check" TEXT NOT NULL CHECK ("check" IN ('supported', 'contradicted', 'unverified')),
            check_note TEXT NOT NULL,
            created_at TEXT NOT NULL,
            UNIQUE (session, trial),
            FOREIGN KEY (session, trial) REFERENCES trials (session, handle)
        );

        -- Rules and summaries name their session without a foreign key: knowledge may come from another home.
        CREATE TABLE rules (
            id INTEGER PRIMARY KEY,
            kind TEXT NOT NULL CHECK (kind IN ('prefer', 'avoid', 'insight')),
            statement TEXT NOT NULL,
            condition TEXT,
            backbone TEXT,
            dataset TEXT NOT NULL,
            dataset_id TEXT NOT NULL,
            session TEXT NOT NULL,
            evidence TEXT NOT NULL CHECK (json_valid(evidence)),
            "check" TEXT NOT NULL CHECK ("check" IN ('supported', 'contradicted', 'unverified')),
            support INTEGER NOT NULL CHECK (support >= 0),
            contradiction INTEGER NOT NULL CHECK (contradiction >= 0),
            profile TEXT NOT NULL CHECK (json_valid(profile)),
            created_at TEXT NOT NULL
        );
        CREATE INDEX rules_by_kind ON rules (kind, backbone);

        CREATE TABLE summaries (
            id INTEGER PRIMARY KEY,
            session TEXT NOT NULL UNIQUE,
            dataset TEXT NOT NULL,
            dataset_id TEXT NOT NULL,
            backbone TEXT NOT NULL,
            text TEXT NOT NULL,
            computed TEXT NOT NULL CHECK (json_valid(computed)),
            profile TEXT NOT NULL CHECK (json_valid(profile)),
            created_at TEXT NOT NULL
        );
    """)


@MIGRATIONS()
def m002_full_text(db: Database) -> None:
    """A full-text index over what agents wrote, kept in step by triggers."""
    for table, column in (("rules", "statement"), ("reflections", "lesson"), ("summaries", "text")):
        db.table(table).enable_fts([column], create_triggers=True, tokenize="porter unicode61")


@MIGRATIONS()
def m003_rule_counts(db: Database) -> None:
    """What each session has to say for and against a rule, so that counting a session twice changes nothing."""
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
    """The one-way rules, held by the database itself."""
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
