"""The tables of the cost ledger (migration m010). A released schema is never edited; another migration changes it.

Sessions are named without a foreign key: a call may be outside of any session. A reservation ends once; an imported row
may grow, because some clients report running totals.
"""

LEDGER_TABLES = """
CREATE TABLE llm_calls (
    id INTEGER PRIMARY KEY,
    session TEXT NOT NULL,
    step TEXT NOT NULL,
    request TEXT NOT NULL,
    source TEXT NOT NULL CHECK (source IN ('measured', 'imported')),
    state TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'lost', 'free')),
    origin TEXT,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    input INTEGER NOT NULL DEFAULT 0 CHECK (input >= 0),
    cached INTEGER NOT NULL DEFAULT 0 CHECK (cached >= 0),
    cache_write INTEGER NOT NULL DEFAULT 0 CHECK (cache_write >= 0),
    output INTEGER NOT NULL DEFAULT 0 CHECK (output >= 0),
    reasoning INTEGER NOT NULL DEFAULT 0 CHECK (reasoning >= 0),
    estimated INTEGER NOT NULL DEFAULT 0 CHECK (estimated IN (0, 1)),
    reserved_usd REAL CHECK (reserved_usd >= 0),
    usd REAL CHECK (usd >= 0),
    reply TEXT CHECK (reply IS NULL OR json_valid(reply)),
    note TEXT NOT NULL DEFAULT '',
    created_at TEXT NOT NULL,
    ended_at TEXT,
    CHECK ((state = 'reserved') = (ended_at IS NULL)),
    CHECK ((source = 'imported') = (origin IS NOT NULL))
);
CREATE INDEX llm_calls_by_step ON llm_calls (session, step, request);
CREATE UNIQUE INDEX llm_calls_imported ON llm_calls (session, origin) WHERE origin IS NOT NULL;

CREATE TRIGGER llm_calls_end_once BEFORE UPDATE ON llm_calls
WHEN OLD.source = 'measured' AND OLD.state IN ('settled', 'free')
BEGIN SELECT RAISE(ABORT, 'a call that was settled does not change'); END;

CREATE TABLE llm_quirks (
    address TEXT NOT NULL,
    model TEXT NOT NULL,
    quirk TEXT NOT NULL,
    learnt_at TEXT NOT NULL,
    PRIMARY KEY (address, model, quirk)
);
"""
