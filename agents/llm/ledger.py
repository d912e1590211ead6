"""What the client needs of a cost ledger: `memory.ledger.Ledger` has it, and this drawer does not depend on memory/."""

from collections.abc import Iterable, Mapping
from typing import Protocol


class CallLedger(Protocol):
    """Rows of calls: reserved before they are sent, then settled, released (nothing charged) or lost (uncertain)."""

    def reserve(  # noqa: PLR0913 - a call has as many parts
        self,
        session: str,
        step: str,
        request: str,
        *,
        provider: str,
        model: str,
        usd: float | None,
        max_usd: float | None = None,
    ) -> int:
        """Reserve a price for a call and return its id; raises CostCapError if it could exceed `max_usd`."""

    def settle(
        self,
        call: int,
        tokens: Mapping[str, int],
        *,
        usd: float | None,
        reply: Mapping[str, object],
        estimated: bool = False,
    ) -> None:
        """End a call that got a reply."""

    def release(self, call: int, note: str) -> None:
        """End a call for which nothing was charged."""

    def lose(self, call: int, note: str) -> None:
        """End a call that may have been charged without a reply."""

    def reclaim(self, session: str) -> int:
        """Mark reservations of earlier processes as lost."""

    def last_reply(self, session: str, step: str, request: str | None = None) -> str | None:
        """The JSON text of the reply that was paid for a step and request."""

    def spent(self, session: str) -> float | None:
        """What a session's calls cost at most; None if unknown."""

    def cap(self, session: str) -> float | None:
        """The cap that the session was opened with."""

    def quirks(self, address: str, model: str) -> frozenset[str]:
        """What a model was found not to accept."""

    def learn(self, address: str, model: str, quirks: Iterable[str]) -> None:
        """Store what a model was found not to accept."""
