"""The sessions that use a dataset, which are checked before it is removed or replaced."""

from pathlib import Path

from ..memory.records import SessionRecord
from ..memory.store import Memory

ENDED = ("revealed", "void")


def sessions_on(home: Path, name: str, dataset_id: str | None) -> list[SessionRecord]:
    """The sessions on dataset `name` with content `dataset_id` (None: any), oldest first; creates no memory.db."""
    path = home / "memory.db"
    if not path.exists():
        return []
    with Memory(path) as memory:
        sessions = memory.sessions.all()
    return [s for s in sessions if s.dataset == name and dataset_id in (None, s.dataset_id)]


def unfinished(sessions: list[SessionRecord]) -> str:
    """The sessions that still need their dataset, as text for a message; empty if there are none."""
    named = [f"{session.id} ({session.state})" for session in sessions if session.state not in ENDED]
    return f"session {', '.join(named)}" if named else ""
