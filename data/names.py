"""Dataset names. They become directory names, so a name must not lead out of the data directory."""

import re

from .errors import DataError

MAX_LENGTH = 64


def check_name(name: str) -> str:
    """Return `name` if it is a valid dataset name; raise DataError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or len(name) > MAX_LENGTH:
        raise DataError(
            f"dataset name {name!r} is invalid; use up to {MAX_LENGTH} letters, digits, '.', '_' or '-', "
            "and begin with a letter or a digit"
        )
    return name


def name_from_file(filename: str) -> str:
    """Derive a dataset name from a file name without its extensions: 'my log.tsv.gz' gives 'my-log'."""
    stem = filename.split(".", maxsplit=1)[0] or filename.strip(".")
    return check_name(re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:MAX_LENGTH])
