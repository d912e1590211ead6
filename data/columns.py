"""Which columns of a log are the user, the item and the time: by name and by content.

A guess prefers ids to names and titles, and Unix times to dates. Roles without a column, and roles that several columns
fit equally well, are one error that names all of them and options that would work. Not covered: reading the values.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ColumnsError, DataError
from .reading import ROLES

USER_NOUNS = (
    "user", "customer", "client", "visitor", "reviewer", "member", "buyer", "shopper", "account", "subscriber",
    "viewer", "listener", "reader", "player", "consumer", "purchaser", "guest", "person", "profile", "student",
    "household", "cust", "usr",
)  # fmt: skip
ITEM_NOUNS = (
    "item", "product", "article", "movie", "video", "track", "song", "sku", "book", "news", "listing", "content",
    "business", "restaurant", "venue", "poi", "place", "game", "app", "course", "recipe", "offer", "good", "ad", "post",
    "film", "anime", "stock", "variant", "prod",
)  # fmt: skip
ITEM_CODES = ("sku", "asin", "isbn", "ean", "upc", "gtin")
ID_ENDINGS = ("id", "ids", "uid", "uuid", "guid", "key", "code", "no", "nr", "num", "number", "index", "idx", "hash",
               "uniqueid", "pseudoid")  # fmt: skip
NUM_SHOWN = 20  # columns that an error lists
MIN_ORDER = 3  # events of one user that have to be distinct
SMALLEST_UNIX, LARGEST_UNIX = 1e8, 5e9  # 1973 and 2128, in seconds
SHAPES = {
    "instant": re.compile(
        r"\d{4}-\d{2}-\d{2}[T ]\d{2}:?\d{2}.*"  # ISO 8601
        r"|(19|20)\d{12}"  # YYYYMMDDhhmmss
        r"|[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4}.*"  # RFC 2822
        r"|[A-Z][a-z]{2} [A-Z][a-z]{2} \d{2} \d{2}:\d{2}.*"  # Tue Nov 14 22:13:20 +0000 2023
    ),
    "date": re.compile(r"(19|20)\d{2}(0[1-9]|1[0-2])([0-2]\d|3[01])|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"),
    "clock": re.compile(r"([01]\d|2[0-3])(:?[0-5]\d){1,2}(\.\d+)?"),  # 23:14, 231429
}
NULLS = {"", "null", "nan", "none", "na", "n/a", "\\n", "nat", "-1", "0"}
UNIX_NAMES = {"timestamp", "ts", "epoch", "unixtime", "unixtimestamp", "unixreviewtime", "eventtimestamp", "eventts"}
MOMENT = re.compile(
    r"(created|occurred|ordered|purchased|bought|sold|paid|placed|invoiced|visited|clicked|viewed|played|watched|rated"
    r"|reviewed|added)(at|on)"
)
TIME_UNITS = ("ms", "us", "ns", "s", "sec", "secs", "seconds", "millis", "micros", "nanos", "utc")
NO_EVENT = re.compile(  # of a user or an item, or of what happened to an event later
    r"birth|dob|expir|release|publish|signup|signedup|regist|until|deliver|^ship|shipp|updat|modif|cancel|refund"
)
CLOCK_NOUNS = {"time", "timeofday", "hour", "hourmin", "clock"}


@dataclass(frozen=True)
class Column:
    """A column of a log: its name and the texts of its first values."""

    name: str
    values: Sequence[str]


@dataclass(frozen=True)
class Choice:
    """role → position of its column, and what is to be said about it."""

    positions: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Guess:
    """The positions that fit a role best, one if it is decided, and why if the name alone does not say it."""

    positions: list[int]
    reason: str = ""


def choose_columns(source: str, columns: list[Column], given: dict[str, str], header: bool = True) -> Choice:
    """The columns of the three roles: those that are given, else the best guess. Raises DataError."""
    found = {role: _given(source, role, columns, name) for role, name in given.items()}
    by_position = {} if header else _by_position(columns)
    is_guess = by_position and len(given) < len(ROLES)
    notes = ["there is no header: columns were guessed by position and content"] if is_guess else []
    for role in (role for role in ROLES if role not in given):
        found[role] = Guess([by_position[role]] if role in by_position else [])
        if header:
            found[role] = _guess(role, columns, {position for guess in found.values() for position in guess.positions})
        if found[role].reason:
            name = columns[found[role].positions[0]].name
            notes.append(f"the {role} is taken from the column {name!r}, {found[role].reason}")
    if any(len(found[role].positions) != 1 for role in ROLES):
        raise _undecided(source, columns, found, given, header)
    chosen = {role: found[role].positions[0] for role in ROLES}
    if len(set(chosen.values())) < len(ROLES):
        names = {role: columns[position].name for role, position in chosen.items()}
        raise DataError(f"{source}: user, item and timestamp must be three columns, not {names}")
    if "timestamp" not in given:
        _refuse_clock(source, columns, chosen["timestamp"])
    return Choice(chosen, tuple(notes))


def kind_of(values: Sequence[str]) -> str:
    """What most of the values are: instant, date, clock, rating, number, text; or empty."""
    texts = [text.strip() for text in values]
    kinds = Counter(_kind(text) for text in texts if text.lower() not in NULLS)
    if not kinds:
        return "number" if any(text in ("0", "-1") for text in texts) else "empty"
    kind, count = kinds.most_common(1)[0]
    return kind if count * 2 > kinds.total() else "number" if "text" not in kinds else "text"


def _kind(text: str) -> str:
    shape = next((kind for kind, pattern in SHAPES.items() if pattern.fullmatch(text)), None)
    if shape:
        return shape
    if not re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", text):
        return "text"
    number = float(text)
    if any(SMALLEST_UNIX * unit <= number < LARGEST_UNIX * unit for unit in (1, 1e3, 1e6, 1e9)):
        return "instant"
    return "rating" if 0 <= number <= 10 else "number"


def _given(source: str, role: str, columns: list[Column], name: str) -> Guess:
    names = [column.name for column in columns]
    if names.count(name) > 1:
        numbers = " and ".join(str(number) for number, other in enumerate(names, start=1) if other == name)
        raise DataError(f"{source}: the columns {numbers} are all called {name!r}; choose one with --{role} N")
    if name in names:
        return Guess([names.index(name)])
    return Guess([int(name) - 1] if name.isdecimal() and 1 <= int(name) <= len(columns) else [])


def _guess(role: str, columns: list[Column], taken: set[int]) -> Guess:
    """The positions that fit the role best."""
    kinds = [kind_of(column.values) for column in columns]
    names = [normalise(column.name) for column in columns]
    ranks = {}
    for position, name in enumerate(names):
        rank = _rank(role, name, kinds[position])
        if position not in taken and rank is not None:
            ranks[position] = rank
    if not ranks and role == "timestamp":
        times = [position for position, kind in enumerate(kinds) if kind == "instant" and position not in taken]
        instants = [position for position in times if not NO_EVENT.search(names[position])]
        return Guess(instants, "the only one that holds times") if len(instants) == 1 else Guess([])
    best = [position for position, rank in ranks.items() if rank == min(ranks.values())]
    if len(best) != 1:
        return Guess(best)
    others = [columns[position].name for position in ranks if position not in best]
    if others:
        return Guess(best, f"not from {' or '.join(map(repr, others))}, by name and content")
    is_plain = names[best[0]].startswith("time" if role == "timestamp" else role)
    return Guess(best, "" if is_plain else "by its name")


def normalise(name: str) -> str:
    """A column name in lower case, without punctuation and without the type that RecBole appends after a colon."""
    return re.sub(r"[^a-z0-9]", "", name.lower().split(":")[0])


def is_role_name(name: str) -> bool:
    """Whether a column of this name could be a user, an item or a time."""
    return any(_rank(role, normalise(name), "instant") is not None for role in ROLES)


def _rank(role: str, name: str, kind: str) -> tuple[int, int] | None:
    """How well a column fits a role by content and by name, smaller is better; None = not at all."""
    if role == "timestamp":
        by_name = None if NO_EVENT.search(name) else _time_rank(name, kind)
        by_content = {"instant": 0, "number": 1, "rating": 1, "empty": 1, "date": 2, "clock": 3, "text": 4}[kind]
        return None if by_name is None else (by_content, by_name)
    by_name = _id_rank(name, USER_NOUNS if role == "user" else ITEM_NOUNS)
    return None if by_name is None else (0, by_name)


def _id_rank(name: str, nouns: tuple[str, ...]) -> int | None:
    """Smaller is better: user_id, then customer_id, user, customer, old_user_id, session_id, email; None = no id."""
    own, synonyms = nouns[0], nouns[1:]
    codes, late = (ITEM_CODES, ("parentasin",)) if own == "item" else ((), ("session", "sessionid"))
    ends = ("id", *codes)  # item_sku
    tiers = (
        name in (f"{own}id", f"{own[0]}id"),
        name in codes or any(name == f"{noun}{end}" for noun in nouns for end in ID_ENDINGS),
        name in (own, f"{own}s"),
        name in synonyms,
        any(name.endswith(f"{noun}{end}") for noun in nouns for end in ends),
        name in late,
        own == "user" and any(name == f"{noun}email" for noun in ("", *nouns)),
    )
    return tiers.index(True) if any(tiers) else None


def _time_rank(name: str, kind: str) -> int | None:
    bases = [name, *(name.removesuffix(unit) for unit in TIME_UNITS if name.endswith(unit))]
    if name == "timestamp":
        return 0
    if any(base in UNIX_NAMES for base in bases):
        return 1
    if any(base in ("time", "datetime", "eventtime") for base in bases):
        return 2
    if kind not in ("instant", "date"):  # play_time and watch_time are durations
        return 3 if name in ("date", "day") else None
    if any(base.endswith(("time", "timestamp", "ts")) for base in bases) or MOMENT.fullmatch(name):
        return 2
    return 3 if name.endswith(("date", "day", "dt", "dat")) else None


def _by_position(columns: list[Column]) -> dict[str, int]:
    """Roles in a file without a header: user, item and time, or user, item, rating and time. A rating is no time."""
    kinds = [kind_of(column.values) for column in columns]
    if len(columns) == 3 and (kinds[2] in ("instant", "date", "number") or _is_order(columns[0], columns[2])):
        return {"user": 0, "item": 1, "timestamp": 2}
    if len(columns) == 4 and sorted(kinds[2:]) == ["instant", "rating"] and "instant" not in kinds[:2]:
        return {"user": 0, "item": 1, "timestamp": kinds.index("instant")}
    return {"user": 0, "item": 1} if len(columns) == 3 and kinds[2] == "rating" else {}


def _is_order(users: Column, values: Column) -> bool:
    """Whether small numbers count the events of each user; as ratings they would repeat."""
    by_user: dict[str, list[str]] = {}
    for user, value in zip(users.values, values.values, strict=False):
        by_user.setdefault(user, []).append(value)
    repeats = any(len(set(found)) < len(found) for found in by_user.values())
    return (
        not repeats and max(map(len, by_user.values()), default=0) >= MIN_ORDER and kind_of(values.values) == "rating"
    )


def _refuse_clock(source: str, columns: list[Column], chosen: int) -> None:
    """Refuse a date beside a time of day: either alone would tie or mix up the events of a user."""
    kinds = [kind_of(column.values) for column in columns]
    clocks = [i for i, column in enumerate(columns) if kinds[i] == "clock" and normalise(column.name) in CLOCK_NOUNS]
    if kinds[chosen] in ("date", "clock") and len({chosen, *clocks}) > 1:
        names = " and ".join(repr(columns[position].name) for position in sorted({chosen, *clocks}))
        raise DataError(
            f"{source}: {names} are a date and a time of day in two columns; join them in one column like "
            "2024-05-31T12:00:00, or order events by one of them alone with --timestamp"
        )


def _undecided(
    source: str, columns: list[Column], found: dict[str, Guess], given: dict[str, str], header: bool
) -> ColumnsError:
    """The error that names every role that is not decided, the columns, and an option for each role that would work."""
    missing = [role for role in ROLES if not found[role].positions]
    tied = [role for role in ROLES if len(found[role].positions) > 1]
    lacks = " and ".join(f"column {given[role]!r}" if role in given else f"a column for the {role}" for role in missing)
    ties = [f"{_named(columns, found[role].positions)} fit equally well as the {role}" for role in tied]
    problem = f"{source} lacks {lacks}" if missing else f"{source}: {' and '.join(ties)}"
    if missing:
        problem += f"{', and ' if ties else ''}{' and '.join(ties)}; it has {_listed(columns, header)}"
        if len(columns) == 1 and re.search(r"[^\w ]", columns[0].name):
            problem += "; if cells are separated by another character, name it with --separator"
    return ColumnsError(problem, _suggested(columns, found, header))


def _suggested(columns: list[Column], found: dict[str, Guess], header: bool) -> dict[str, str]:
    """For each undecided role a column that could be meant, as its option takes it; COLUMN or N if there is none.

    Of columns that fit equally well the first; else the first free one that holds times, for users and items the first
    that does not.
    """
    names = [column.name for column in columns]
    kinds = [kind_of(column.values) for column in columns]
    free = [position for position in range(len(columns))
            if not any(position in guess.positions for guess in found.values())]  # fmt: skip
    by_role = {}
    for role in (role for role in ROLES if len(found[role].positions) != 1):
        wanted = ("instant", "date") if role == "timestamp" else ("text", "number", "rating")
        fitting = found[role].positions or [position for position in free if kinds[position] in wanted]
        free = [position for position in free if position not in fitting[:1]]
        is_name = header and bool(fitting) and names.count(names[fitting[0]]) == 1 and len(names[fitting[0]]) <= 60
        number = str(fitting[0] + 1) if fitting else "COLUMN" if header else "N"
        by_role[role] = names[fitting[0]] if is_name else number
    return by_role


def _named(columns: list[Column], positions: list[int]) -> str:
    names = [columns[position].name for position in positions]
    return " and ".join(
        repr(name) if names.count(name) == 1 else f"column {position + 1} ({name!r})"
        for name, position in zip(names, positions, strict=True)
    )


def _listed(columns: list[Column], header: bool) -> str:
    names = [f"{column.name!r:.60}" for column in columns[:NUM_SHOWN]]
    if not header:
        names = [f"{name} ({column.values[0]!r:.40})" for name, column in zip(names, columns, strict=False)]
    more = f" and {len(columns) - NUM_SHOWN} more" if len(columns) > NUM_SHOWN else ""
    return f"{'' if header else 'no header and '}{', '.join(names)}{more}"
