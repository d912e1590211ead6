"""Counts, lists and durations in sentences."""

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`, `1,440 users`, `2 summaries`: a number with its noun in the regular singular or plural."""
    if number == 1:
        return f"1 {noun}"
    ends_in_ies = noun.endswith("y") and noun[-2] not in "aeiou"
    return f"{number:,} {noun[:-1]}ies" if ends_in_ies else f"{number:,} {noun}s"


def listed(names: Sequence[str]) -> str:
    """`t001`, `t001 and t002`, `t001, t002 and t003`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def roughly(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h`: an estimated duration, to about two digits."""
    if seconds < 100:
        return f"{round(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{round(seconds / 3600)} h"


def british(word: str) -> str:
    """The word as names of dimensions and knobs spell it: "optimization" is optimisation."""
    return word.replace("ization", "isation").replace("modeling", "modelling")
