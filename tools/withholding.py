"""Test results are withheld from agents while another session on the same content is open.

An agent that tunes on must not see a test figure of its data, whichever session the figure belongs to. `finalize`
freezes and examines all the same; its answer, the views and the reports give the result from the moment at which the
last of these sessions ends. A person may see it at any time (`virtualmle sessions show NAME --reveal`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..data.catalogue import Catalogue
from ..data.errors import DataError
from ..examiner.request import TestResult, looks, read_revealed
from ..memory.records import SessionRecord, SessionState
from ..memory.store import Memory
from .contents import content_in

ShownState = SessionState | Literal["withheld"]
"""The state of a session as tools and reports show it: `withheld` = revealed, but not to agents yet."""

LATER = "revealed when the last open session on this data ends"


def open_beside(home: Path, memory: Memory, session: SessionRecord) -> list[str]:
    """The ids of the other open sessions on the content of `session`, oldest first.

    A session whose dataset was replaced or removed runs no more trials and does not count.
    """
    others = [other for other in memory.sessions.in_state("open") if other.id != session.id]
    same = content_in(home, session.dataset_id) if others else frozenset()
    return [other.id for other in others if other.dataset_id in same and _can_go_on(home, other)]


def shown_state(home: Path, memory: Memory, session: SessionRecord) -> ShownState:
    """The state of a session for tools and reports."""
    is_revealed = session.state == "revealed"
    return "withheld" if is_revealed and open_beside(home, memory, session) else session.state


def shown_result(home: Path, memory: Memory, session: SessionRecord) -> TestResult | None:
    """The test result of a session as far as agents may see it; None without one, and while it is withheld.

    Raises SealError if the file of the result is damaged.
    """
    result = read_revealed(home, session.id)
    return None if result is None or open_beside(home, memory, session) else result


def is_looked_at(home: Path, dataset_id: str) -> bool:
    """Whether anybody has looked at the test set of this content, in any session of this home."""
    known = {look.dataset_id for look in looks(home)}
    return bool(known) and not known.isdisjoint(content_in(home, dataset_id))


def withheld_sentence(session: str, others: Sequence[str]) -> str:
    """Why the result of a session is not shown, and how a person can see it."""
    return (
        f"The test result is {LATER} (open: {', '.join(others)}); until then a person can see it with "
        f"`virtualmle sessions show {session} --reveal`."
    )


def _can_go_on(home: Path, session: SessionRecord) -> bool:
    """Whether the dataset of a session is still the one that it was opened on."""
    if session.replay:
        return True
    try:
        return Catalogue(home).manifest(session.dataset).dataset_id == session.dataset_id
    except DataError:
        return False
