"""How an attack can end."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["held", "seen", "fell", "skipped"]
"""Prevented; not prevented, but `doctor` reports it; neither; or it cannot be tried on this machine."""


@dataclass(frozen=True)
class Verdict:
    """How one attack ended, in a sentence."""

    outcome: Outcome
    detail: str


def held(detail: str) -> Verdict:
    """The attack was prevented."""
    return Verdict("held", detail)


def fell(detail: str) -> Verdict:
    """The attack succeeded, and nothing reports it."""
    return Verdict("fell", detail)


def skipped(detail: str) -> Verdict:
    """The attack cannot be tried here."""
    return Verdict("skipped", detail)
