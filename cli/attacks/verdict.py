"""What an attack is, and how it can end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .scene import Scene

Outcome = Literal["held", "seen", "fell", "skipped"]
"""Prevented; not prevented, but `doctor` reports it; neither; or it cannot be tried on this machine."""
Means = Literal["tools", "wire", "shell"]
"""An MCP client; bytes on the server's input or socket; a process of the same user."""


@dataclass(frozen=True)
class Verdict:
    """How one attack ended, in a sentence."""

    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Attack:
    """One attack; `number` is its row in docs/security.md."""

    number: str
    title: str
    means: Means
    run: Callable[["Scene"], Verdict]
    is_quick: bool = False  # needs no server and no further training: `doctor` tries it, too


def held(detail: str) -> Verdict:
    """The attack was prevented."""
    return Verdict("held", detail)


def fell(detail: str) -> Verdict:
    """The attack succeeded, and nothing reports it."""
    return Verdict("fell", detail)


def skipped(detail: str) -> Verdict:
    """The attack cannot be tried here."""
    return Verdict("skipped", detail)
