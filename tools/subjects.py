"""What a query of the state or of the trajectory names: trials by their handles, and knobs."""

import re
from typing import NamedTuple

from ..data.errors import ConfigError
from ..memory.records import SessionRecord, TrialRecord
from .knob_entries import knob_rows, rows_named
from .workspace import Workspace

_HANDLE = re.compile(r"\bt\d+\b", re.IGNORECASE)


class Subjects(NamedTuple):
    """The trials and the knobs that a query names, at least one."""

    trials: frozenset[str]
    knobs: frozenset[str]

    def include(self, trial: TrialRecord) -> bool:
        """Whether the query names the trial, or a knob that it changes."""
        return trial.handle in self.trials or not self.knobs.isdisjoint(trial.changed)


def subjects_of(ws: Workspace, session: SessionRecord, query: str) -> Subjects:
    """The trials and knobs that a query names, in any case; knobs also by alias or dimension.

    Raises SessionError for an unknown trial, and ConfigError if the query names neither a trial nor a knob.
    """
    trials = frozenset(ws.memory.trials.get(session.id, handle).handle for handle in _HANDLE.findall(query))
    rows = knob_rows(ws.session_protocol(session).space, session.backbone)
    knobs = frozenset(row.knob for row in rows_named(rows, _HANDLE.sub(" ", query)))
    if not trials and not knobs:
        raise ConfigError(
            f"query={query!r:.60} names neither a trial nor a knob of {session.backbone}; name some, e.g. 't003 lr', "
            "or leave query out"
        )
    return Subjects(trials, knobs)
