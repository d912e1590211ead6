"""The cost ledger: one row per call of a language model, with tokens by kind and money.

A call is reserved at its worst case before it is sent, and then ends in one of three ways: settled (a reply came, with
its tokens and its price), lost (sent, but no reply was read: it may have been charged, and counts at its reservation)
or free (nothing was charged). A reservation that a killed process left behind is lost. Money is None where the price of
the model is not known; it is never counted as 0.

Usage of clients that are not ours is imported from their result files; it stands in rows of its own, marked so.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, Field

from ..data.errors import CostCapError
from .database import MemoryDatabase, Repository, reads, writes
from .rows import Row, insert, now, to_json
from .sessions import Sessions
from .text import clean_text

KINDS = ("input", "cached", "cache_write", "output", "reasoning")
Source = Literal["measured", "imported"]
_SUMS = ", ".join(f"sum({kind}) AS {kind}" for kind in KINDS)
_COUNTED = "CASE state WHEN 'settled' THEN usd ELSE reserved_usd END"  # NULL: unknown


class Totals(BaseModel):
    """The calls of a session, or of some of its models: tokens by kind of the settled ones, and money."""

    session: str
    provider: str
    model: str
    source: Source
    calls: int = Field(description="settled calls")
    lost: int = Field(description="calls that may have been charged without a reply, or are under way")
    input: int
    cached: int
    cache_write: int
    output: int
    reasoning: int
    estimated: int = Field(description="settled calls whose tokens are estimated, because the server reported none")
    usd: float | None = Field(description="price of the settled calls; None if it is not known of any of them")
    lost_usd: float | None = Field(description="reservations of the lost calls; None if not known of any of them")


class ImportedUsage(BaseModel):
    """Usage that another client reported. `origin` identifies the record, so that it is counted once."""

    origin: str
    provider: str
    model: str
    tokens: dict[str, int]
    usd: float | None
    note: str = ""


class Ledger(Repository):
    """The tables llm_calls and llm_quirks."""

    def __init__(self, database: MemoryDatabase, sessions: Sessions) -> None:
        super().__init__(database)
        self.sessions = sessions

    @writes
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
        """Reserve the worst-case price of a call; returns the id of its row.

        Raises CostCapError, and stores nothing, if the session's calls could then cost more than `max_usd`.
        """
        spent = self._counted(session)
        if max_usd is not None and (spent is None or usd is None or spent + usd > max_usd):
            raise CostCapError(
                f"the next call may cost {_dollars(usd)}, and {_dollars(spent)} of the cap of {_dollars(max_usd)} are "
                "used; a higher cap (--max-usd, max_llm_usd in SANDBOX.md) would allow it"
            )
        row: Row = {"session": session, "step": step, "request": request, "source": "measured", "state": "reserved"}
        row |= {"provider": provider, "model": model, "reserved_usd": usd, "created_at": now()}
        return insert(self.db, "llm_calls", row)

    @writes
    def settle(
        self,
        call: int,
        tokens: Mapping[str, int],
        *,
        usd: float | None,
        reply: Mapping[str, object],
        estimated: bool = False,
    ) -> None:
        """End a call whose reply was received, and raise the cost of its session, in one transaction."""
        counts = [tokens.get(kind, 0) for kind in KINDS]
        columns = ", ".join(f"{kind} = ?" for kind in KINDS)
        self._end(
            call,
            f"state = 'settled', {columns}, estimated = ?, usd = ?, reply = ?",
            [*counts, int(estimated), usd, to_json(dict(reply))],
        )

    @writes
    def release(self, call: int, note: str) -> None:
        """End a call for which nothing was charged: it was refused, or never arrived."""
        self._end(call, "state = 'free', usd = 0, note = ?", [clean_text(note, 300)])

    @writes
    def lose(self, call: int, note: str) -> None:
        """End a call that was sent and got no readable reply; it counts at its reservation."""
        self._end(call, "state = 'lost', note = ?", [clean_text(note, 300)])

    @writes
    def reclaim(self, session: str) -> int:
        """Mark the reservations that a process of this session left behind as lost; returns their number."""
        query = "SELECT id FROM llm_calls WHERE session = ? AND state = 'reserved'"
        left = [call for (call,) in self.db.execute(query, [session]).fetchall()]
        for call in left:
            self.lose(call, "the process ended before the reply was stored")
        return len(left)

    @reads
    def last_reply(self, session: str, step: str, request: str | None = None) -> str | None:
        """The JSON text of the last reply that was paid for a step, and for `request` if it is given."""
        query = (
            "SELECT reply FROM llm_calls WHERE session = ? AND step = ? AND request = coalesce(?, request) "
            "AND state = 'settled' AND source = 'measured' ORDER BY id DESC LIMIT 1"
        )
        row = self.db.execute(query, [session, step, request]).fetchone()
        return row[0] if row else None

    @reads
    def spent(self, session: str) -> float | None:
        """What the measured calls of a session cost at most: settled ones at their price, others at their reservation.

        None if the price of a call is not known.
        """
        return self._counted(session)

    @reads
    def cap(self, session: str) -> float | None:
        """The cap that the session was opened with; None if it has none, or if there is no such session."""
        row = self.db.execute("SELECT max_llm_usd FROM sessions WHERE id = ?", [session]).fetchone()
        return row[0] if row else None

    @reads
    def totals(self, session: str | None = None) -> list[Totals]:
        """Totals by session, provider, model and source, oldest session first."""
        query = f"""
            SELECT session, provider, model, source, {_SUMS}, sum(estimated) AS estimated,
                   sum(settled) AS calls, sum(open) AS lost,
                   CASE WHEN sum(settled AND usd IS NULL) = 0 THEN coalesce(sum(usd), 0) END AS usd,
                   CASE WHEN sum(open AND reserved_usd IS NULL) = 0
                        THEN coalesce(sum(CASE WHEN open THEN reserved_usd END), 0) END AS lost_usd
              FROM (SELECT *, state = 'settled' AS settled, state IN ('lost', 'reserved') AS open FROM llm_calls)
             WHERE session = coalesce(?, session)
             GROUP BY session, provider, model, source ORDER BY min(id)
        """
        return [Totals.model_validate(row) for row in self.db.query(query, [session])]

    @writes
    def import_usage(self, session: str, records: Iterable[ImportedUsage]) -> int:
        """Store usage that another client reported; returns how many records are new or have grown.

        A record that is stored already, by its origin, is replaced if it has grown, and else left as it is.
        """
        name = self.sessions.get(session).id
        return sum(self._import(name, record) for record in records)

    @reads
    def quirks(self, address: str, model: str) -> frozenset[str]:
        """What a model at an address was found not to accept."""
        query = "SELECT quirk FROM llm_quirks WHERE address = ? AND model = ?"
        return frozenset(quirk for (quirk,) in self.db.execute(query, [address, model]).fetchall())

    @writes
    def learn(self, address: str, model: str, quirks: Iterable[str]) -> None:
        """Replace what is known of a model at an address."""
        self.db.execute("DELETE FROM llm_quirks WHERE address = ? AND model = ?", [address, model])
        for quirk in sorted(quirks):
            insert(self.db, "llm_quirks", {"address": address, "model": model, "quirk": quirk, "learnt_at": now()})

    def _import(self, session: str, record: ImportedUsage) -> int:
        query = f"SELECT id, {' + '.join(KINDS)} FROM llm_calls WHERE session = ? AND origin = ?"
        known = self.db.execute(query, [session, record.origin]).fetchone()
        tokens = {kind: record.tokens.get(kind, 0) for kind in KINDS}
        if known and known[1] >= sum(tokens.values()):
            return 0
        if known:
            self.db.execute("DELETE FROM llm_calls WHERE id = ?", [known[0]])
        row: Row = {"session": session, "step": "", "request": "", "source": "imported", "state": "settled"}
        row |= {"provider": record.provider, "model": record.model, "usd": record.usd, **tokens}
        row |= {"origin": record.origin, "note": clean_text(record.note, 300), "created_at": now(), "ended_at": now()}
        insert(self.db, "llm_calls", row)
        return 1

    def _end(self, call: int, assignments: str, values: list[object]) -> None:
        """End an open call. A lost one may still be settled: another process took its reservation for abandoned."""
        query = f"UPDATE llm_calls SET {assignments}, ended_at = ? WHERE id = ? AND state IN ('reserved', 'lost')"
        changed = self.db.execute(query, [*values, now(), call]).rowcount
        assert changed == 1, f"call {call} has ended already"
        (session,) = self.db.execute("SELECT session FROM llm_calls WHERE id = ?", [call]).fetchone()
        query = "UPDATE sessions SET llm_usd = max(llm_usd, ?) WHERE id = ? AND state = 'open'"
        self.db.execute(query, [self._known(session), session])

    def _counted(self, session: str) -> float | None:
        query = f"""
            SELECT coalesce(sum({_COUNTED}), 0), count(*) - count({_COUNTED}) FROM llm_calls
             WHERE session = ? AND source = 'measured' AND state <> 'free'
        """
        usd, unknown = self.db.execute(query, [session]).fetchone()
        return None if unknown else float(usd)

    def _known(self, session: str) -> float:
        """The money of a session's ended calls as far as it is known."""
        query = f"""
            SELECT coalesce(sum({_COUNTED}), 0) FROM llm_calls
             WHERE session = ? AND source = 'measured' AND state IN ('settled', 'lost')
        """
        return float(self.db.execute(query, [session]).fetchone()[0])


def _dollars(usd: float | None) -> str:
    return "an unknown amount" if usd is None else f"{usd:.4f} US dollars"
