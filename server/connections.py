"""HTTP connections with limits: how long a client may take over each part of a request, and how many are open at once.

uvicorn waits for the headers and the body of a request without end, so that a client that sends half a request keeps a
connection for as long as it likes, before it has shown a token. The limits apply to every connection from its start.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

ABORT_SECONDS = 2.0  # in which a client may read the reason why its connection is closed


@dataclass(frozen=True)
class HttpLimits:
    """Seconds and counts; every time counts from the first byte of the part, however it trickles in."""

    header_seconds: float = 10.0  # until the headers of a request are complete, from the start of the connection
    body_seconds: float = 30.0  # until its body is complete
    write_seconds: float = 60.0  # in which a client must read something of what was sent to it
    keep_alive_seconds: int = 30  # between two requests
    max_connections: int = 256  # an agent has a handful open


def limited(limits: HttpLimits) -> type[asyncio.Protocol]:
    """The protocol class that a uvicorn.Config takes as `http`."""
    return type("LimitedProtocol", (_LimitedProtocol,), {"limits": limits})


class _LimitedProtocol(H11Protocol):
    limits: ClassVar[HttpLimits]

    _awaited = ""  # the part of a request that the client owes
    _since = 0.0  # when the current state began, in seconds of the event loop
    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive = self.limits.keep_alive_seconds
        self._since = self.loop.time()
        self._watch()
        if len(self.connections) > self.limits.max_connections:
            self._make_room()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._deadline, self._reading):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(self.limits.write_seconds, self._stop_writing)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(ABORT_SECONDS, self.transport.abort)  # it may not have read the last answer

    def _watch(self) -> None:
        """Start or stop the clock of what the client owes now."""
        awaited = self._owed()
        if awaited == self._awaited:
            return
        self._awaited, self._since = awaited, self.loop.time()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if awaited:
            seconds = self.limits.header_seconds if awaited == "header" else self.limits.body_seconds
            self._deadline = self.loop.call_later(seconds, self._expire)

    def _owed(self) -> str:
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        is_between_requests = self.timeout_keep_alive_task is not None
        return "header" if self.conn.their_state is h11.IDLE and not is_between_requests else ""

    def _expire(self) -> None:
        logger.warning("closed a connection of %s: the %s of its request was not complete in time", *self._described())
        self._close(408, "Request Timeout")

    def _stop_writing(self) -> None:
        logger.warning("closed a connection of %s, which does not read its answer", self._described()[0])
        self.transport.abort()

    def _make_room(self) -> None:
        """Close the connection that has owed a request for longest; without one, refuse this one."""
        others = [each for each in self.connections if isinstance(each, _LimitedProtocol) and each is not self]
        oldest = min((each for each in others if each._is_idle()), key=lambda each: each._since, default=self)
        logger.warning("closed a connection of %s: %d are open", oldest._described()[0], self.limits.max_connections)
        self.connections.discard(oldest)  # counted no longer, though it may take a moment to close
        oldest._close(503, "Service Unavailable")

    def _is_idle(self) -> bool:
        """Whether no request of this connection is complete and waits for its answer."""
        return bool(self._awaited) or self.timeout_keep_alive_task is not None

    def _close(self, status: int, phrase: str) -> None:
        """End the connection, with an answer unless one has begun or none is due."""
        has_begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if self._awaited and not has_begun and not self.transport.is_closing():
            head = f"HTTP/1.1 {status} {phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            self.transport.write(head.encode())
        self.transport.close()
        self.loop.call_later(ABORT_SECONDS, self.transport.abort)

    def _described(self) -> tuple[str, str]:
        return self.client[0] if self.client else "an unknown address", self._awaited
