"""The values of the knob `ensemble`: the names of the member trials, in one canonical text such as "t004+t010".

People and agents give a list of names, in any order. Configurations hold the text, which is the same for every order,
so that equal ensembles are the same trial. "" is no ensemble. A name is the handle of a trial of the same session
("t004"), or of another session, preceded by its id ("beauty-hstu-1/t010"). Which trials exist, and may be members, is
not known here (`tools/members.py`).
"""

import re
from collections.abc import Iterable

from ...data.errors import ConfigError

ENSEMBLE = "ensemble"
NO_MEMBERS = ""
MIN_MEMBERS, MAX_MEMBERS = 2, 4
COUNT = f"{MIN_MEMBERS} to {MAX_MEMBERS} trials"
_SEPARATOR = "+"  # the id of a session cannot contain it
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)?t\d{3,}(r\d+(-\d+)?)?")  # r1 = a repetition of a confirmation
_HOW = f'give a list of {COUNT}, e.g. ["t004", "t010"], or [] for none'


def members_of(value: str) -> tuple[str, ...]:
    """The names in a canonical text, sorted; () for no ensemble."""
    return tuple(value.split(_SEPARATOR)) if value else ()


def ensemble_of(given: object) -> str:
    """The canonical text of a list of names, or of such a text. Raises ConfigError for anything else."""
    names = members_of(given) if isinstance(given, str) else given
    names = [_folded(name) for name in names] if isinstance(names, list | tuple) else names
    if not isinstance(names, list | tuple):
        raise ConfigError(f"{ENSEMBLE}={given!r:.60} is not a list of trials; {_HOW}")
    wrong = next((name for name in names if not isinstance(name, str) or not _NAME.fullmatch(name)), None)
    if wrong is not None:
        raise ConfigError(
            f"{ENSEMBLE}: {wrong!r:.60} is not the name of a trial; write t004, or SESSION/t004 for another session"
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"{ENSEMBLE}={list(names)!r:.120} names a trial twice; name each member once")
    if names and not MIN_MEMBERS <= len(names) <= MAX_MEMBERS:
        raise ConfigError(f"{ENSEMBLE} has {len(names)} members; {_HOW}")
    return joined(names)


def _folded(name: object) -> object:
    """A name with its handle in lower case; ids of sessions keep theirs."""
    if not isinstance(name, str):
        return name
    owner, slash, handle = name.strip().rpartition("/")
    return f"{owner}{slash}{handle.lower()}"


def joined(names: Iterable[str]) -> str:
    """The canonical text of valid names."""
    return _SEPARATOR.join(sorted(names))
