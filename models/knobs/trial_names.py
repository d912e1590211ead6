"""The values of the knobs `ensemble` and `teachers`: names of trials, in one canonical text such as "t004+t010".

People and agents give a list of names, in any order. Configurations hold the text, which is the same for every order,
so that equal lists are the same trial. "" names none. A name is the handle of a trial of the same session
("t004"), or of another session, preceded by its id ("beauty-hstu-1/t010"). Which trials exist, and may be named, is
not known here (`tools/members.py`).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ...data.errors import ConfigError

ENSEMBLE, TEACHERS = "ensemble", "teachers"
MIN_MEMBERS, MAX_MEMBERS = 2, 4
NO_TRIALS = ""
_SEPARATOR = "+"  # the id of a session cannot contain it
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)?t[0-9]{3,}(r[0-9]+(-[0-9]+)?)?")  # r1 = a repetition


@dataclass(frozen=True)
class TrialNames:
    """A knob whose values name trials, and how many of them it may name, unless it names none."""

    knob: str
    fewest: int
    most: int

    @property
    def count(self) -> str:
        """How many, in words."""
        return f"{self.fewest} to {self.most} trials"

    def canonical(self, given: object) -> str:
        """The canonical text of a list of names, or of such a text. Raises ConfigError for anything else."""
        names = names_in(given) if isinstance(given, str) else given
        names = [_folded(name) for name in names] if isinstance(names, list | tuple) else names
        how = f'give a list of {self.count}, e.g. ["t004", "t010"], or [] for none'
        if not isinstance(names, list | tuple):
            raise ConfigError(f"{self.knob}={given!r:.60} is not a list of trials; {how}")
        wrong = next((name for name in names if not isinstance(name, str) or not _NAME.fullmatch(name)), None)
        if wrong is not None:
            raise ConfigError(
                f"{self.knob}: {wrong!r:.60} is not the name of a trial; write t004, or SESSION/t004 for another "
                "session"
            )
        if len(set(names)) < len(names):
            raise ConfigError(f"{self.knob}={list(names)!r:.120} names a trial twice; name each one once")
        if names and not self.fewest <= len(names) <= self.most:
            raise ConfigError(f"{self.knob} names {len(names)}; {how}")
        return joined(names)


NAMING = {
    ENSEMBLE: TrialNames(ENSEMBLE, MIN_MEMBERS, MAX_MEMBERS),
    TEACHERS: TrialNames(TEACHERS, 1, MAX_MEMBERS),
}
"""The knobs whose values name trials."""


def names_in(value: str) -> tuple[str, ...]:
    """The names in a canonical text, sorted; () for none."""
    return tuple(value.split(_SEPARATOR)) if value else ()


def _folded(name: object) -> object:
    """A name with its handle in lower case; ids of sessions keep theirs."""
    if not isinstance(name, str):
        return name
    owner, slash, handle = name.strip().rpartition("/")
    return f"{owner}{slash}{handle.lower()}"


def joined(names: Iterable[str]) -> str:
    """The canonical text of valid names."""
    return _SEPARATOR.join(sorted(names))
