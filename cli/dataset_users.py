"""The sessions that use a dataset, which are checked before it is removed or replaced."""

from pathlib import Path

from ..memory.records import SessionRecord
from ..memory.store import Memory
from .advice import SessionCommands

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
    named = [f"{session.id} ({session.state})" for session in _unfinished(sessions)]
    return f"session{'s' if len(named) > 1 else ''} {', '.join(named)}" if named else ""


def finishing(home: Path, sessions: list[SessionRecord]) -> str:
    """The commands that finish those of the sessions that are unfinished, as text for a message."""
    commands = [SessionCommands(home, s.dataset, s.backbone, s.id).resume for s in _unfinished(sessions)]
    return ", ".join(f"`{command}`" for command in commands)


def _unfinished(sessions: list[SessionRecord]) -> list[SessionRecord]:
    return [session for session in sessions if session.state not in ENDED and not session.replay]
