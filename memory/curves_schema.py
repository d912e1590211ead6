"""The table of learning curves (migration m016). A released schema is never edited; another migration changes it.

Curves name their session without a foreign key: like rules, they outlive it.
"""

import json

from sqlite_utils import Database


def add_curves(db: Database) -> None:
    """Create the table, and fill it with the curves of the sessions that were closed before it existed."""
    db.executescript("""
        CREATE TABLE curves (
            session TEXT NOT NULL,
            trial TEXT NOT NULL,
            dataset TEXT NOT NULL,
            dataset_id TEXT NOT NULL,
            backbone TEXT NOT NULL,
            users INTEGER NOT NULL CHECK (users > 0),
            config TEXT NOT NULL CHECK (json_valid(config)),
            epochs TEXT NOT NULL CHECK (json_array_length(epochs) > 0),
            ndcg10 TEXT NOT NULL CHECK (json_array_length(ndcg10) = json_array_length(epochs)),
            PRIMARY KEY (session, trial)
        );
        CREATE INDEX curves_by_backbone ON curves (backbone, dataset);
    """)
    rows = db.execute("""
        SELECT trials.session, handle, dataset, dataset_id, backbone, json_extract(profile, '$.users'), config, curve
          FROM trials JOIN sessions ON sessions.id = trials.session
         WHERE sessions.state <> 'open' AND trials.status = 'finished' AND sessions.replay = '{}'
           AND json_extract(profile, '$.users') > 0 AND json_array_length(curve) > 0
           AND NOT coalesce(json_extract(details, '$.rescored'), 0)
    """).fetchall()
    for *columns, curve in rows:
        points = [(epoch["epoch"], epoch["ndcg10"]) for epoch in json.loads(curve) if "ndcg10" in epoch]
        if points:
            values = [json.dumps(part) for part in zip(*points, strict=True)]
            db.execute("INSERT INTO curves VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [*columns, *values])
