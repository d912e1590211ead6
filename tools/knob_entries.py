"""The knobs of a backbone as rows of a view: all of them, or those that a query names, with what they do."""

import re
from collections.abc import Sequence
from itertools import pairwise

from ..data.errors import ConfigError
from ..data.wording import british
from ..models.config import KNOBS
from ..models.knobs.declaration import DIMENSIONS
from ..sandbox.action_space import ActionSpace
from .views import KnobRow

MOST_DESCRIBED = 8
SHORTEST_WORD = 4  # of a query that is looked for in descriptions


def knob_rows(space: ActionSpace, backbone: str) -> list[KnobRow]:
    """The knobs of a backbone, in the order of SANDBOX.md."""
    return [KnobRow.model_validate(row) for row in space.describe(backbone)]


def rows_named(rows: Sequence[KnobRow], query: str) -> list[KnobRow]:
    """The rows of the knobs that a word of `query` names, by name, alias or dimension."""
    words = _words(query)
    return [row for row in rows if any(_names(row, word) for word in words)]


def explained_knobs(space: ActionSpace, backbone: str, query: str) -> tuple[list[KnobRow], int]:
    """The knobs that a word of `query` names, by name, alias or dimension, with what they do; and how many more match.

    If it names none, those whose description has its words, at most MOST_DESCRIBED: first those with most of them.
    Raises ConfigError if the query matches none.
    """
    rows = knob_rows(space, backbone)
    named = rows_named(rows, query)
    found = named or _described(rows, query)
    if not found:
        raise ConfigError(
            f"no knob of {backbone} matches {query!r:.60}; leave query out for all knobs, or name a dimension: "
            f"{', '.join(DIMENSIONS)}"
        )
    shown = found if named else found[:MOST_DESCRIBED]
    return [_explained(row) for row in shown], len(found) - len(shown)


def _described(rows: Sequence[KnobRow], query: str) -> list[KnobRow]:
    """The rows whose description has a word of the query that is long enough to say something."""
    words = {word for word in _words(query) if len(word) >= SHORTEST_WORD}
    common = {row.knob: len(words.intersection(_words(KNOBS[row.knob].about.text))) for row in rows}
    return sorted((row for row in rows if common[row.knob]), key=lambda row: -common[row.knob])


def _words(query: str) -> list[str]:
    """The words of a query as names spell them, and neighbours joined: "Learning rate" has learning_rate, too."""
    words = [british(word) for word in re.split(r"[^0-9a-z_]+", query.casefold()) if word]
    return [*words, *map("_".join, pairwise(words))]


def _names(row: KnobRow, word: str) -> bool:
    """Whether the word is the knob, its dimension or an alias, or a part of the knob's name such as `dropout`."""
    return word in {row.knob, row.dimension, *KNOBS[row.knob].about.aliases} or word in row.knob.split("_")


def _explained(row: KnobRow) -> KnobRow:
    about = KNOBS[row.knob].about
    details = {"does": about.text, "helps": about.helps, "cost": about.cost, "note": about.note}
    inert = about.inert.reason if about.inert else None
    rounded = str(about.resolution) if about.resolution else None
    known = {name: text or None for name, text in details.items()}
    return row.model_copy(update={**known, "inert": inert, "rounded_to": rounded})
