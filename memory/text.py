"""Sanitise text written by agents and users: limit its length, remove hidden characters, quote it as data."""

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
"""Stop words. Negations are not among them, because "not" reverses the meaning of a sentence."""


def clean_text(text: str, limit: int) -> str:
    """`text` in Unicode NFC without hidden characters, truncated with an ellipsis to `limit` characters.

    Newlines and tabs are kept. Zero-width and bidirectional characters can disguise text, so they are removed.
    """
    visible = text
    if not text.isprintable():  # printable text has no hidden characters: skip the scan
        visible = "".join(LINE_ENDS.get(c, c) for c in text.replace("\r\n", "\n") if _is_visible(c))
    visible = unicodedata.normalize("NFC", visible).strip()
    return visible if len(visible) <= limit else visible[: limit - 1].rstrip() + ELLIPSIS


def replace_surrogates(name: str) -> str:
    """`name` with lone surrogates, which SQLite cannot store, replaced by question marks, for look-ups."""
    return name.encode(errors="replace").decode()


def quote(text: str, limit: int) -> str:
    """`text` on one line in quotation marks that its content cannot close, to mark it as data, not instructions."""
    line = re.sub(r"\s+", " ", re.sub("[“”]", '"', clean_text(text, limit)))
    return f"“{line}”"


def normalised(text: str) -> str:
    """The words of `text` without case, spacing and punctuation; equal for statements that count as the same."""
    return " ".join(re.findall(r"[\w.]*\w", unicodedata.normalize("NFKC", text).casefold()))


def content_words(text: str) -> frozenset[str]:
    """The set of stemmed words of `text` without stop words."""
    return frozenset(_stem(word) for word in normalised(text).split() if word not in COMMON_WORDS)


def content_key(text: str) -> str:
    """A key that is equal for statements with the same content words, in any order and number."""
    return " ".join(sorted(content_words(text)))


def word_overlap(a: str, b: str) -> float:
    """Jaccard similarity in [0, 1] of the content words of two texts; 1 if neither text has any."""
    left, right = content_words(a), content_words(b)
    return len(left & right) / len(left | right) if left | right else 1.0


def source_key(dataset_id: str, profile: Mapping[str, Any]) -> str:
    """The key of a source of knowledge: the dataset id or, if that is unknown, a hash of its profile."""
    if dataset_id:
        return dataset_id
    return "profile:" + hashlib.sha256(json.dumps(profile, sort_keys=True).encode()).hexdigest()[:16]


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def _is_visible(character: str) -> bool:
    return character in "\n\t" or character in LINE_ENDS or unicodedata.category(character) not in HIDDEN_CATEGORIES
