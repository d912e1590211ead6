"""The table of trials since migration m015. A released schema is never edited; another migration changes it.

The migration replaces the table because SQLite cannot change a CHECK. It drops the old table before it fills the new
one: the foreign keys to it are deferred, and each row of the new table settles those that refer to it. Triggers and
indexes of the old table go with it, so all of them are created again here.
"""

TRIALS_MAY_BE_STOPPED = """
PRAGMA defer_foreign_keys = ON;
ALTER TABLE sessions ADD COLUMN parallel INTEGER NOT NULL DEFAULT 1 CHECK (parallel > 0);

CREATE TABLE trials_before AS SELECT * FROM trials ORDER BY rowid;
DROP TABLE trials;
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
    status TEXT NOT NULL CHECK (status IN ('running', 'finished', 'stopped', 'crashed', 'cancelled')),
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
    proposal TEXT CHECK (proposal IS NULL OR json_valid(proposal)),
    sweep TEXT CHECK (sweep IS NULL OR json_valid(sweep)),
    repetition INTEGER NOT NULL DEFAULT 0 CHECK (repetition >= 0),
    repeats TEXT,
    UNIQUE (session, handle),
    UNIQUE (session, number),
    CHECK ((status = 'running') = (finished_at IS NULL)),
    CHECK ((status = 'running') = (metrics IS NULL)),
    CHECK (status <> 'stopped' OR (verdict IS 'discard' AND metrics = '{}')),
    CHECK ((repetition > 0) = (repeats IS NOT NULL)),
    FOREIGN KEY (session, repeats) REFERENCES trials (session, handle)
);
INSERT INTO trials SELECT *, 0, NULL FROM trials_before ORDER BY rowid;
DROP TABLE trials_before;

CREATE INDEX trials_by_config ON trials (session, config_hash);
CREATE INDEX trials_by_configuration ON trials (config_hash, status);
CREATE INDEX trials_running ON trials (session) WHERE status = 'running';

CREATE TRIGGER trials_while_open BEFORE INSERT ON trials
WHEN (SELECT state FROM sessions WHERE id = NEW.session) <> 'open'
BEGIN SELECT RAISE(ABORT, 'a session that is not open takes no trials'); END;

CREATE TRIGGER trials_end_once BEFORE UPDATE ON trials
WHEN OLD.status <> 'running'
BEGIN SELECT RAISE(ABORT, 'a trial that has ended does not change'); END;

CREATE TRIGGER trials_stay_in_their_session BEFORE UPDATE OF session ON trials
WHEN NEW.session <> OLD.session
BEGIN SELECT RAISE(ABORT, 'a trial stays in its session'); END;

CREATE TRIGGER trials_running_at_most BEFORE INSERT ON trials
WHEN NEW.status = 'running' AND
     (SELECT count(*) FROM trials WHERE session = NEW.session AND status = 'running')
     >= (SELECT parallel FROM sessions WHERE id = NEW.session)
BEGIN SELECT RAISE(ABORT, 'the session already runs as many trials as it may run at a time'); END;
"""
