"""memory.db as one object with a repository per kind of row: `memory.sessions`, `memory.trials`, `memory.rules`, ...

Not covered: the rules of the Program, and test targets, which memory.db never stores. Every method of a repository may
raise MemoryStoreError (the file is locked, full, read-only or damaged), and SessionError for an unknown session or
trial and for writes to a session that is not open.
"""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from .database import MemoryDatabase
from .kept_texts import KeptTexts
from .knowledge import Knowledge
from .ledger import Ledger
from .measurements import Measurements
from .recorded import Figures
from .reflections import Reflections
from .rules import Rules
from .sessions import Sessions
from .summaries import Summaries
from .trials import Trials


class Memory:
    """memory.db at `path`, whose directory must exist, or an in-memory database if `path` is None.

    The threads of a process may share one Memory; every process must open its own.
    """

    def __init__(self, path: Path | None, *, busy_seconds: float = 5.0) -> None:
        self.database = MemoryDatabase(path, busy_seconds)
        self.sessions = Sessions(self.database)
        self.trials = Trials(self.database, self.sessions)
        self.reflections = Reflections(self.database, self.sessions, self.trials)
        self.summaries = Summaries(self.database, self.sessions)
        self.rules = Rules(self.database, self.sessions)
        self.measurements = Measurements(self.database)
        self.figures = Figures(self.database)
        self.kept_texts = KeptTexts(self.database)
        self.ledger = Ledger(self.database, self.sessions)
        self._knowledge: dict[tuple[str, ...], Knowledge] = {}

    def __enter__(self) -> "Memory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the object cannot be used afterwards."""
        self.database.close()

    def knowledge(self, datasets: Iterable[str] = ()) -> Knowledge:
        """The knowledge of earlier sessions; if `datasets` are given, only from sessions on these datasets."""
        scope = tuple(datasets)
        if scope not in self._knowledge:  # cached, because a Knowledge caches its pooled effects
            self._knowledge[scope] = Knowledge(self.database, self.rules, self.figures, scope)
        return self._knowledge[scope]
