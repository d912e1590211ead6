"""Text that agents and users wrote, made safe to store and to hand back: bounded, visible, quoted as data."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs"})  # control; format (bidirectional, zero-width, tags); lone surrogates
LINE_ENDS = {"\u2028": "\n", "\u2029": "\n", "\u0085": "\n"}
ELLIPSIS = "…"
_COMMON = """a an and are as at be been but by can did do does for from had has have here in is it its may more of on
or so than that the their then there these this to very was we were which while will with"""
COMMON_WORDS = frozenset(_COMMON.split())
"""Words that carry no content. Negations are none of them: with and without "not" a sentence says two things."""


def clean_text(text: str, limit: int) -> str:
    """`text` without hidden characters, in Unicode NFC, at most `limit` characters long (cut with an ellipsis).

    Newlines and tabs stay. Zero-width and bidirectional characters go: they can make text read other than it is.
    """
    shown = text
    if not text.isprintable():  # printable text has none of the hidden characters: no need to look at each
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


def content_words(text: str) -> frozenset[str]:
    """The words of `text` that carry its content, without order, endings and the words that every sentence has."""
    return frozenset(_stem(word) for word in normalised(text).split() if word not in COMMON_WORDS)


def content_key(text: str) -> str:
    """Equal for statements that say nearly the same: the same content words, in any order and number."""
    return " ".join(sorted(content_words(text)))


def alike(a: str, b: str) -> float:
    """The share of content words that two texts have in common, in [0, 1] (Jaccard); 1 for two without any."""
    left, right = content_words(a), content_words(b)
    return len(left & right) / len(left | right) if left | right else 1.0


def source_key(dataset_id: str, profile: Mapping[str, Any]) -> str:
    """Where knowledge comes from: the dataset, or, where that is not known, its profile."""
    if dataset_id:
        return dataset_id
    return "profile:" + hashlib.sha256(json.dumps(profile, sort_keys=True).encode()).hexdigest()[:16]


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def _is_shown(character: str) -> bool:
    return character in "\n\t" or character in LINE_ENDS or unicodedata.category(character) not in HIDDEN_CATEGORIES
