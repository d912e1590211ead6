"""The ids of a log as text: missing ids are found, and one id that is written in two ways becomes one id.

An id changes only where the column as a whole says what is meant: blanks around ids are removed, quotes if all ids are
quoted, and '.0' if all ids are whole numbers. What is unclear is reported and stays.
"""

from dataclasses import dataclass

import polars as pl

from .errors import DataError
from .rows import Source

MISSING = frozenset(
    spelling
    for word in ("null", "none", "nan", "undefined", "n/a", "(not set)", "(null)", "(none)", "<null>", "<na>")
    for spelling in (word, word.upper(), word.capitalize())
) | {"", "NA", "#N/A", "NaN", "NaT", "\\N", "\\\\N", "(Not Set)", "00000000-0000-0000-0000-000000000000"}
MINUS_ONE = ("-1", "-1.0")
EXACT = 2**53  # whole numbers beyond it are not exact as floating-point numbers
INVISIBLE = "[\u200b\u200c\u200d\ufeff]"
SCIENTIFIC = r"^-?\d\.?\d*[eE]\+\d+$"  # 1.23E+18
WHOLE = r"^-?\d+(?:\.0+)?$"


@dataclass(frozen=True)
class Ids:
    """The ids of all rows. Where `missing`, a row has no id, and `complaint` says which rows and why."""

    text: pl.Series  # String
    missing: pl.Series | None
    complaint: str
    notes: tuple[str, ...]


def read_ids(raw: pl.Series, role: str, source: Source) -> Ids:
    """Convert the column of the users or the items (`role`) to text. Raises DataError for a type that is no id."""
    column = f"{source.file}: the {role} ids in column {source.columns.get(role, role)!r}"
    if raw.dtype.is_nested():
        raise DataError(f"{column} have the type {raw.dtype}; a log needs one id per row: choose another --{role}")
    if raw.dtype == pl.Binary:
        raw = raw.bin.encode("hex")
    text, notes = _from_numbers(raw, column) if raw.dtype.is_numeric() else _from_text(raw.cast(pl.String), column)
    missing = _missing(text, raw.dtype)
    if missing is None:
        return Ids(text, None, "", notes)
    first = raw[int(missing.arg_true()[0])]
    meaning = "empty" if first is None or not str(first).strip() else f"{first!r}, which stands for a missing id"
    complaint = f"{source.place(missing)}: the {role} is {meaning} ({source.extent(missing)})"
    return Ids(text, missing, complaint, notes)


def _from_numbers(raw: pl.Series, column: str) -> tuple[pl.Series, tuple[str, ...]]:
    if isinstance(raw.dtype, pl.Decimal) and raw.dtype.scale:
        raw = raw.cast(pl.Float64)
    if not raw.dtype.is_float():
        return raw.cast(pl.String), ()
    raw = raw.fill_nan(None)
    if ((raw != raw.floor()) | raw.is_infinite()).any():
        return raw.cast(pl.String), ()
    notes: tuple[str, ...] = ()
    if (raw.abs() >= (EXACT if raw.dtype == pl.Float64 else 2**24)).any():
        notes = (f"{column} are floating-point numbers, too large to be exact: different ids may have become one",)
    return raw.cast(pl.Int64, strict=False).cast(pl.String), notes


def _from_text(raw: pl.Series, column: str) -> tuple[pl.Series, tuple[str, ...]]:
    notes = []
    text = raw.str.strip_chars()
    num_stripped = int((text.str.len_bytes() != raw.str.len_bytes()).sum())
    if num_stripped:
        notes.append(f"{column} had blanks before or after them in {num_stripped:,} rows, which were removed")
    text, note = _unquoted(text, column)
    notes += note
    text, note = _whole_numbers(text, column)
    notes += [*note, *_doubts(text, column)]
    return text, tuple(notes)


def _unquoted(text: pl.Series, column: str) -> tuple[pl.Series, list[str]]:
    starts = text.str.starts_with('"')
    if not starts.any():
        return text, []
    quoted = starts & text.str.ends_with('"') & (text.str.len_bytes() >= 2)
    if (quoted | text.is_in(list(MISSING))).all():
        inner = text.str.replace(r'^"(.*)"$', "${1}").str.strip_chars()
        return inner, [f"{column} were in quotes, which were removed"]
    return text, [f"{column} begin with a quote in {int(starts.sum()):,} rows; it was kept as a part of the id"]


def _whole_numbers(text: pl.Series, column: str) -> tuple[pl.Series, list[str]]:
    """Write 4.0 as 4 if all ids are whole numbers, as a column of floating-point numbers was written."""
    floats = text.str.ends_with(".0")
    if not floats.any():
        return text, []
    num_floats = int(floats.sum())
    if (text.str.contains(WHOLE) | text.is_in(list(MISSING))).all():
        return text.str.replace(r"\.0+$", ""), [f"{column} are whole numbers written with '.0' in {num_floats:,} rows, "
                                                "which was removed"]  # fmt: skip
    return text, [f"{column} end with '.0' in {num_floats:,} rows but are not all numbers; they were kept as they are"]


def _doubts(text: pl.Series, column: str) -> list[str]:
    """Notes about ids that are probably one id in several notations, or several ids in one."""
    notes = []
    ids = text.unique().drop_nulls()
    plain = ids.str.normalize("NFC").str.replace_all(INVISIBLE, "").str.to_lowercase().str.replace(r"^0+(\d)", "${1}")
    num_alike = len(ids) - plain.n_unique()
    if num_alike:
        notes.append(
            f"{column}: {num_alike:,} of {len(ids):,} differ from another one only in leading zeros, upper case or "
            "invisible characters; they were kept as different ids"
        )
    num_rounded = int(ids.str.contains(SCIENTIFIC).sum())
    if num_rounded:
        notes.append(
            f"{column}: {num_rounded:,} of {len(ids):,} are in scientific notation: if a spreadsheet has replaced "
            "their last digits, different ids have become one"
        )
    return notes


def _missing(text: pl.Series, dtype: pl.DataType) -> pl.Series | None:
    """Mask of missing ids, None if there are none."""
    missing = text.is_null()
    if not dtype.is_numeric():
        missing |= text.is_in(list(MISSING)).fill_null(True)
    minus = text.is_in(list(MINUS_ONE)).fill_null(False)
    if minus.any() and not text.filter(~(missing | minus)).str.contains(r"^-\d").any():
        missing |= minus
    return missing if missing.any() else None
