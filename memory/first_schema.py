"""The tables of migration m001. A released schema is never edited; another migration changes it."""

FIRST_TABLES = """
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
"""
