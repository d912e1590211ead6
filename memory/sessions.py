"""Sessions: ids, one-way state transitions, and the refusal of writes to sessions that are not open."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from sqlite_utils import Database

from ..data.errors import ConfigError, SessionError
from .database import Repository, reads, writes
from .records import Extension, SessionRecord, SessionState
from .rows import Row, columns_of, from_row, insert, now, to_json, to_row
from .text import clean_text, replace_surrogates, source_key

NEXT_STATES: dict[SessionState, tuple[SessionState, ...]] = {
    "open": ("frozen",),
    "frozen": ("attempted", "void"),
    "attempted": ("revealed", "void"),
    "revealed": (),
    "void": (),
}
COLUMNS = columns_of(SessionRecord)
SELECT = f"SELECT {COLUMNS} FROM sessions"


class Change(NamedTuple):
    """The state of a session, and how many rows belong to it."""

    state: SessionState
    trials: int
    running: int
    reflections: int
    amendments: int


class Sessions(Repository):
    """The table of sessions."""

    @writes
    def open(self, record: SessionRecord, *, taken: Collection[str] = ()) -> SessionRecord:
        """Store a new session; an empty id is replaced by the next "DATASET-BACKBONE-N" that is not in `taken`."""
        if self.db.execute("SELECT 1 FROM sessions WHERE id = ?", [record.id]).fetchone():
            raise SessionError(f"session {record.id!r} exists already; leave the id empty to have one generated")
        session = record.model_copy(
            update={
                "id": record.id or self._next_id(f"{record.dataset}-{record.backbone}", taken),
                "state": "open",
                "selected": None,
                "opened_at": record.opened_at or now(),
                "frozen_at": None,
                "client": clean_text(record.client, 200),
            }
        )
        insert(self.db, "sessions", to_row(session))
        store_profile(self.db, session.dataset_id, session.profile)
        return session

    @reads
    def get(self, session: str) -> SessionRecord:
        """The session with this id; raises SessionError, with the most similar ids, if it does not exist."""
        rows = list(self.db.query(f"SELECT {COLUMNS} FROM sessions WHERE id = ?", [replace_surrogates(session)]))
        if not rows:
            ids = [row["id"] for row in self.db.query("SELECT id FROM sessions ORDER BY serial DESC")]
            none = "there are none yet; open_session or `virtualmle tune` opens one"
            known = f"sessions here: {closest_names(session, ids)}" if ids else none
            raise SessionError(f"unknown session {session!r:.60}; {known}")
        return _record(rows[0])

    @reads
    def spelt(self, session: str) -> str:
        """The id that a client means: `session`, or else the only one that differs from it in case and outer spaces."""
        wanted = replace_surrogates(session.strip())
        query = "SELECT id FROM sessions WHERE id = ? COLLATE NOCASE"
        found = [row["id"] for row in self.db.query(query, [wanted])]
        return found[0] if len(found) == 1 and session not in found else session

    @reads
    def require_open(self, session: str) -> SessionRecord:
        """The session with this id; raises SessionError if it does not exist or is not open."""
        record = self.get(session)
        if record.state != "open":
            raise SessionError(
                f"session {record.id!r} is {record.state} and takes no more writes; open another session to continue"
            )
        return record

    @reads
    def all(self) -> list[SessionRecord]:
        """Every session, oldest first."""
        return [_record(row) for row in self.db.query(f"SELECT {COLUMNS} FROM sessions ORDER BY serial")]

    @reads
    def all_open(self, dataset_id: str, backbone: str | None = None) -> list[SessionRecord]:
        """The open sessions on a dataset, oldest first; only those of `backbone`, if given."""
        where = "WHERE dataset_id = ? AND backbone = coalesce(?, backbone) AND state = 'open'"
        query = f"SELECT {COLUMNS} FROM sessions {where} ORDER BY serial"
        return [_record(row) for row in self.db.query(query, [dataset_id, backbone])]

    @reads
    def in_state(self, state: SessionState) -> list[SessionRecord]:
        """The sessions in this state, oldest first."""
        return [_record(row) for row in self.db.query(f"{SELECT} WHERE state = ? ORDER BY serial", [state])]

    @reads
    def on_datasets(self, dataset_ids: Collection[str]) -> list[SessionRecord]:
        """The sessions on any of these datasets, in every state, oldest first."""
        query = f"{SELECT} WHERE dataset_id IN (SELECT value FROM json_each(?)) ORDER BY serial"
        return [_record(row) for row in self.db.query(query, [to_json(sorted(dataset_ids))])]

    @reads
    def overview(self) -> list[Row]:
        """Per session, oldest first: session, dataset, backbone, state, opened_at, trials, best_ndcg10 (or None)."""
        return list(self.db.query("""
            SELECT sessions.id AS session, dataset, backbone, state, opened_at, count(trials.handle) AS trials,
                   max(CASE trials.status WHEN 'finished' THEN json_extract(metrics, '$."ndcg@10"') END) AS best_ndcg10
              FROM sessions LEFT JOIN trials ON trials.session = sessions.id AND trials.repetition = 0
             GROUP BY sessions.serial ORDER BY sessions.serial
        """))

    @reads
    def changes(self) -> dict[str, Change]:
        """By session: what differs as soon as its trials, its reflections or its state change."""
        return {str(session): Change(*row) for session, *row in self.db.execute("""
            SELECT sessions.id, state, (SELECT count(*) FROM trials WHERE session = sessions.id),
                   (SELECT count(*) FROM trials WHERE session = sessions.id AND status = 'running'),
                   (SELECT count(*) FROM reflections WHERE session = sessions.id),
                   (SELECT count(*) FROM earlier_reflections WHERE session = sessions.id)
              FROM sessions ORDER BY serial
        """).fetchall()}

    @writes
    def record_llm_cost(self, session: str, usd: float) -> None:
        """Record the total language-model cost so far; it never decreases, and is fixed once the session is frozen."""
        self.db.execute(
            "UPDATE sessions SET llm_usd = max(llm_usd, ?) WHERE id = ? AND state = 'open'",
            [usd, self.get(session).id],
        )

    @writes
    def set_parallel(self, session: str, parallel: int, *, auto: bool) -> None:
        """Change how many trials of an open session may run at a time. Trials that run already go on."""
        self.db.execute(
            "UPDATE sessions SET parallel = ?, auto_parallel = ? WHERE id = ?",
            [parallel, auto, self.require_open(session).id],
        )

    @writes
    def extend(self, session: str, trials: int, seconds: float) -> SessionRecord:
        """Add trials and training seconds to the budget of an open session; its patience counts from now on.

        For people only: no tool calls it. Raises SessionError for a session that is not open or is being confirmed,
        ConfigError unless one of the two amounts is positive and none is negative.
        """
        if min(trials, seconds) < 0 or max(trials, seconds) <= 0:
            raise ConfigError(f"trials={trials}, seconds={seconds:g} extend nothing; add at least one trial or second")
        owner = self.require_open(session).id
        if self.db.execute("SELECT 1 FROM trials WHERE session = ? AND repetition > 0", [owner]).fetchone():
            raise SessionError(f"session {owner!r} confirms its best trials and takes no more; finalize it")
        query = "SELECT count(*) FROM trials WHERE session = ? AND status <> 'running'"
        (after,) = self.db.execute(query, [owner]).fetchone()
        self.db.execute(
            "UPDATE sessions SET max_trials = max_trials + ?, max_train_seconds = max_train_seconds + ?, "
            "patience_after = ? WHERE id = ?",
            [trials, seconds, after, owner],
        )
        insert(self.db, "extensions", {"session": owner} | to_row(
            Extension(trials=trials, seconds=seconds, after=after, at=now())
        ))  # fmt: skip
        return self.get(owner)

    @reads
    def extensions(self, session: str) -> list[Extension]:
        """The extensions of a session's budget, oldest first."""
        query = "SELECT trials, seconds, after, at FROM extensions WHERE session = ? ORDER BY id"
        return [Extension.model_validate(row) for row in self.db.query(query, [self.get(session).id])]

    @writes
    def set_state(
        self, session: str, expected: SessionState, new: SessionState, *, selected: str | None = None
    ) -> bool:
        """Change the state from `expected` to `new` (open -> frozen -> attempted -> revealed or void; frozen -> void).

        Returns False if the state was not `expected`, because another process has changed it. `selected`, the handle of
        a finished trial, is set with the state "frozen". Raises SessionError for an invalid transition, an unfinished
        `selected`, or a running trial at the freeze.
        """
        if new not in NEXT_STATES[expected]:
            allowed = " or ".join(NEXT_STATES[expected]) or "nothing: the state is final"
            raise SessionError(f"a session cannot go from {expected} to {new}; after {expected} comes {allowed}")
        if selected is not None and new != "frozen":
            raise SessionError(f"selected={selected!r} cannot be set with {new}; the trial is selected at the freeze")
        if self.get(session).state != expected:
            return False
        if new == "frozen":
            self._freeze(session, selected)
        else:
            self.db.execute("UPDATE sessions SET state = ? WHERE id = ?", [new, session])
        return True

    def _freeze(self, session: str, selected: str | None) -> None:
        query = "SELECT handle, status FROM trials WHERE session = ?"
        statuses = dict(self.db.execute(query, [session]).fetchall())
        running = [handle for handle, status in statuses.items() if status == "running"]
        if running:
            raise SessionError(f"trial {running[0]} of session {session!r} is running; wait for it or cancel it first")
        if selected is not None and statuses.get(selected) != "finished":
            finished = [handle for handle, status in statuses.items() if status == "finished"]
            raise SessionError(f"selected={selected!r} is not a finished trial of {session!r}; finished: {finished}")
        self.db.execute(
            "UPDATE sessions SET state = 'frozen', selected = ?, frozen_at = ? WHERE id = ?", [selected, now(), session]
        )

    def _next_id(self, stem: str, taken: Collection[str]) -> str:
        """`stem` with the highest number used so far plus one, so that an id never refers to two sessions."""
        query = "SELECT id FROM sessions WHERE substr(id, 1, ?) = ?"
        rows = self.db.execute(query, [len(stem) + 1, f"{stem}-"]).fetchall()
        used = {*taken, *(name for (name,) in rows)}
        numbers = [int(match[1]) for name in used if (match := re.fullmatch(re.escape(stem) + r"-(\d{1,9})", name))]
        return f"{stem}-{max(numbers, default=0) + 1}"


def store_profile(db: Database, dataset_id: str, profile: Mapping[str, Any]) -> str:
    """Store a profile under the key of its source, unless one is stored already; returns the key."""
    source = source_key(dataset_id, profile)
    db.execute("INSERT OR IGNORE INTO datasets VALUES (?, ?)", [source, to_json(dict(profile))])
    return source


def closest_names(name: str, names: Iterable[str], limit: int = 5) -> str:
    """The names most similar to `name`, for an error message."""
    names = list(names)
    close = difflib.get_close_matches(name, names, limit, cutoff=0.0)
    return ", ".join(close) + (f", … ({len(names)} in total)" if len(names) > len(close) else "")


def _record(row: Row) -> SessionRecord:
    return SessionRecord.model_validate(from_row(row, ["profile", "memory_from", "replay"]))
