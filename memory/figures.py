"""Find the numbers of a free text, and mask those that no recorded figure bears out. Pure.

Agents write texts that later agents read. A number in such a text may be a test figure, so a number is returned only if
a recorded validation figure rounds to it, or if it says too little to be one: see `mask_unverified`.

Read as numbers: digits of every script, with decimal point or decimal comma (0.4242, .4242, 0,4242), signs, thousands
(12 101; 12,101; 12'101), exponents (4242e-4, 4.242×10⁻¹), per cent and per mille in signs and words, digits that are
spaced out (4 2 4 2; 0.42 42), and three or more English number words in a row. Not covered: other spellings, other
bases, ciphers, arithmetic (0.4 + 0.02), and digits spread over several sentences or texts. What an agent writes after
a look at the test set therefore does not reach the long-term memory of its data at all (tools/after_reveal.py).
"""

import bisect
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from ..models.config import knobs_named

UNVERIFIED = "[unverified figure]"
MOST_COUNTED = 100  # a larger count must be recorded
MOST_DIGITS = 40
MOST_POWER = 4096  # widths and batch sizes up to here are powers of two
CONVENTIONAL = (0.9, 0.95, 0.99, 1.0)  # the levels of intervals

_SAME = {"−": "-", "–": "-", "‒": "-", "﹣": "-", "－": "-", "⁻": "-", "＋": "+", "⁺": "+", "．": ".", "٫": ".",
         "，": ",", "،": ",", "٬": ",", "％": "%", "٪": "%", "﹪": "%", "’": "'", "×": "x", "✕": "x"}  # fmt: skip
_UNIT = r"%|‰|per\s?cent\b|percent\b|pct\b|pp\b|percentage\s+points?\b|per\s?mille\b"
_NUMBER = re.compile(
    r"(?P<digits>\d+(?:[.,'_]\d+)*|(?<![\w.,])[.,]\d+)"
    r"(?:[eE](?P<exponent>[+-]?\d{1,3})(?!\w)|\s?[x*·]\s?10\s?(?:\^|\*\*)?\s?(?P<power>[+-]?\d{1,3})(?!\w))?"
    rf"(?:\s?(?P<unit>{_UNIT}))?",
    re.IGNORECASE,
)
_SINGLES = re.compile(r"(?<![\w.,])\d(?:\s?[.,;:/|_\-]\s?\d|\s+\d){2,}(?![\w])")
_WORD = (
    "zero|oh|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|"
    "seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|point|dot|comma"
)
_SPELLED = re.compile(rf"\b(?:{_WORD})(?:[\s\-]+(?:and\s+)?(?:{_WORD})\b){{2,}}", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[;!?\n]|\.(?=\s|$)")


class Reading(NamedTuple):
    """One way to read a number: its absolute value and the unit of its last digit."""

    value: float
    quantum: float


BorneOut = Callable[[Reading], bool]
"""Tells whether a recorded figure rounds to a reading."""


class _Number(NamedTuple):
    """A number in a text, from `start` to `end`."""

    start: int
    end: int
    digits: str
    scale: float  # of exponent and unit
    plain: bool  # neither exponent nor unit


def mask_unverified(text: str, known: Collection[float]) -> str:
    """`text` with every number replaced by "[unverified figure]" that no value of `known` bears out.

    A number is borne out if the absolute value of a known one rounds to it. These need not be: whole numbers up to 100,
    powers of two up to 4096, numbers of one significant digit, those of two if their clause names a knob before them,
    and the levels of intervals (90, 95, 99 %). Masked are also runs of three or more single digits or number words.
    """
    return mask_unless(text, comparison(known))


def mask_unless(text: str, borne_out: BorneOut) -> str:
    """Like `mask_unverified`, with known figures that were prepared by `comparison`."""
    shadow = "".join(map(_plain, text))
    if not any(character.isdigit() for character in shadow) and not _SPELLED.search(shadow):
        return text
    spans = [match.span() for match in _SPELLED.finditer(shadow)]
    spans += [match.span() for match in _SINGLES.finditer(shadow)]
    for run in _runs(shadow, list(_numbers(shadow))):
        spans += _unverified(shadow, run, borne_out)
    return _replaced(text, spans)


def one_digit(value: float | None) -> float | None:
    """A claimed number to one significant digit: enough for a size, too little for a figure."""
    return None if value is None else float(f"{value:.0e}")


def is_borne_out(value: float, borne_out: BorneOut) -> bool:
    """Whether a known figure rounds to `value`, as many digits as it has."""
    exponent = Decimal(repr(value)).normalize().as_tuple().exponent  # a letter for NaN and infinities
    return isinstance(exponent, int) and borne_out(Reading(abs(value), 10.0 ** min(exponent, 0)))


def comparison(known: Collection[float]) -> BorneOut:
    """A function that tells whether the absolute value of a known figure rounds to a reading."""
    recorded = sorted({abs(value) for value in known if math.isfinite(value)})

    def borne_out(reading: Reading) -> bool:
        half = 0.5 * reading.quantum * (1 + 1e-6)
        first = bisect.bisect_left(recorded, reading.value - half)
        return first < len(recorded) and recorded[first] <= reading.value + half

    return borne_out


def _plain(character: str) -> str:
    """The ASCII equivalent of one character, as far as numbers are concerned."""
    if character.isascii():
        return character
    if character in _SAME:
        return _SAME[character]
    number = unicodedata.numeric(character, None)
    if number is not None and number in range(10):
        return str(int(number))
    return " " if unicodedata.category(character) == "Zs" else character


def _numbers(shadow: str) -> Iterator[_Number]:
    for match in _NUMBER.finditer(shadow):
        power = int(match["exponent"] or match["power"] or 0)
        unit = (match["unit"] or "").casefold()
        scale = float(f"1e{power}") * (1.0 if not unit else 1e-3 if unit in ("‰", "permille", "per mille") else 1e-2)
        yield _Number(match.start(), match.end(), match["digits"], scale, plain=match.end() == match.end("digits"))


def _runs(shadow: str, numbers: Sequence[_Number]) -> Iterator[list[_Number]]:
    """The numbers in groups that only spaces separate; one that belongs to a name (NDCG@10, t003) stands alone."""
    run: list[_Number] = []
    for number in numbers:
        apart = not run or shadow[run[-1].end : number.start].strip(" ") or not run[-1].plain
        if run and (apart or _in_name(shadow, run[-1])):
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _in_name(shadow: str, number: _Number) -> bool:
    before = shadow[number.start - 1 : number.start]
    return before.isalpha() or before in ("@", "_")


def _unverified(
    shadow: str, run: Sequence[_Number], borne_out: BorneOut
) -> list[tuple[int, int]]:
    """The spans to mask of a run: of a single number its own, of several the whole run unless it is one number."""
    if len(run) == 1:
        number = run[0]
        return [] if _passes(shadow, number, borne_out) else [(number.start, number.end)]
    joined = _Number(run[0].start, run[-1].end, "".join(n.digits for n in run), run[-1].scale, run[-1].plain)
    if any(map(borne_out, _readings(joined))) or all(any(map(borne_out, _readings(n))) for n in run):
        return []
    return [(joined.start, joined.end)]


def _passes(shadow: str, number: _Number, borne_out: BorneOut) -> bool:
    parts = re.split("[.,]", number.digits)
    if len(parts) > 2 and len(max(parts[1:], key=len)) != 3:  # a list or a version, not thousands
        return all(_passes(shadow, number._replace(digits=part), borne_out) for part in parts)
    readings = _readings(number)
    if any(_says_little(number, reading) or borne_out(reading) for reading in readings):
        return True
    return _significant(number.digits) <= 2 and _names_a_knob(shadow, number.start)


def _says_little(number: _Number, reading: Reading) -> bool:
    value = reading.value
    if number.plain and number.digits.isdigit():
        is_power = value <= MOST_POWER and math.log2(value or 1).is_integer()
        return value <= MOST_COUNTED or is_power or _significant(number.digits) <= 1
    return _significant(number.digits) <= 1 or any(math.isclose(value, level) for level in CONVENTIONAL)


def _significant(digits: str) -> int:
    """The number of digits without the zeros at both ends."""
    return len(re.sub("[.,'_]", "", digits).strip("0"))


def _readings(number: _Number) -> list[Reading]:
    """The ways to read the digits: a single point or comma may separate decimals, or thousands before three digits."""
    if len(number.digits) > MOST_DIGITS:
        return []
    bare = re.sub("['_]", "", number.digits)
    marks = re.findall("[.,]", bare)
    groups = re.split("[.,]", bare)
    found = []
    if not marks or (all(len(group) == 3 for group in groups[1:]) and groups[0].strip("0")):
        found.append(("".join(groups), 0))
    if marks and (len(marks) == 1 or marks[-1] not in marks[:-1]):
        found.append(("".join(groups), len(groups[-1])))
    return [Reading(int(whole) * number.scale / 10**places, number.scale / 10**places) for whole, places in found]


def _names_a_knob(shadow: str, position: int) -> bool:
    """Whether the clause names a knob before this position."""
    return bool(knobs_named(_CLAUSE_END.split(shadow[:position])[-1]))


def _replaced(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with each span masked; spans that overlap or touch are masked as one."""
    parts: list[str] = []
    at = 0
    for start, end in sorted(spans):
        if start >= at:
            parts += [text[at:start], UNVERIFIED] if start > at or not parts else []
        at = max(at, end)
    return "".join([*parts, text[at:]])
