"""Text that agents and users wrote, made safe to store and to hand back: bounded, visible, quoted as data."""

import re
import unicodedata

HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs"})  # control; format (bidirectional, zero-width, tags); lone surrogates
LINE_ENDS = {"\u2028": "\n", "\u2029": "\n", "\u0085": "\n"}
ELLIPSIS = "…"


def clean_text(text: str, limit: int) -> str:
    """`text` without hidden characters, in Unicode NFC, at most `limit` characters long (cut with an ellipsis).

    Newlines and tabs stay. Zero-width and bidirectional characters go: they can make text read other than it is.
    """
    shown = "".join(LINE_ENDS.get(c, c) for c in text.replace("\r\n", "\n") if _is_shown(c))
    shown = unicodedata.normalize("NFC", shown).strip()
    return shown if len(shown) <= limit else shown[: limit - 1].rstrip() + ELLIPSIS


def storable(name: str) -> str:
    """`name` with lone surrogates, which no database stores, as question marks: fit for a look-up."""
    return name.encode(errors="replace").decode()


def quote(text: str, limit: int) -> str:
    """`text` on one line between quotation marks that it cannot close itself: data, not an instruction."""
    line = re.sub(r"\s+", " ", re.sub("[“”]", '"', clean_text(text, limit)))
    return f"“{line}”"


def normalised(text: str) -> str:
    """What two statements must share to count as the same: words alone, without case, spacing or punctuation."""
    return " ".join(re.findall(r"[\w.]*\w", unicodedata.normalize("NFKC", text).casefold()))


def _is_shown(character: str) -> bool:
    return character in "\n\t" or character in LINE_ENDS or unicodedata.category(character) not in HIDDEN_CATEGORIES
