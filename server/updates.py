"""Tells subscribers that the trajectory of a session has changed: `notifications/resources/updated`.

A trial starts, a trial ends, a reflection is written or corrected, the session ends. Trials end in processes of their
own, and other servers and commands may work on the same home, so the changes are found in memory.db, which is asked
once every POLL_SECONDS while somebody listens. Clients of 2026-07-28 listen with subscriptions/listen, which the SDK
serves over a `SubscriptionBus`; earlier ones with resources/subscribe, which is served here.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
from mcp import MCPError
from mcp.server import MCPServer
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ResourcesListChanged, ResourceUpdated, ServerEvent
from mcp.types import EmptyResult, SubscribeRequestParams, UnsubscribeRequestParams

from ..data.errors import MemoryStoreError, SessionError, VirtualMLEError
from ..data.wording import listed
from ..memory.sessions import Change
from ..tools.sync import sync_session
from ..tools.workspace import Workspace
from .refusals import RESOURCE_NOT_FOUND, shown
from .resources import SESSION_RESOURCES

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # one query of memory.db; a trial takes seconds at least
SESSIONS = "session://"
MAX_SUBSCRIPTIONS = 100  # resources of one connection; more are forgotten, the oldest first

Handled = ServerRequestContext[Any, Any]


class Updates:
    """Who listens to what, and what has changed; a `SubscriptionBus`."""

    def __init__(self, ws: Workspace) -> None:
        self._ws = ws
        self._bus = InMemorySubscriptionBus()
        self._num_listeners = 0
        self._is_new = False  # somebody has subscribed since the last look, and may have missed what came before it
        self._subscribed: dict[object, tuple[ServerSession, dict[str, None]]] = {}  # by connection: the uris, in order

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Register the listener of a subscriptions/listen stream; returns what ends it."""
        end = self._bus.subscribe(listener)
        self._num_listeners += 1
        self._is_new = True
        left = [None]

        def unsubscribe() -> None:
            if left:
                left.pop()
                self._num_listeners -= 1
            end()

        return unsubscribe

    async def publish(self, event: ServerEvent) -> None:
        """Tell everybody who listens to it."""
        await self._bus.publish(event)
        if isinstance(event, ResourceUpdated):
            for session, uris in list(self._subscribed.values()):
                if event.uri in uris:
                    await session.send_resource_updated(event.uri)  # dropped if the connection is closed

    async def watch(self) -> None:
        """Publish what changes, until cancelled.

        After a new subscription every session counts as changed once: what happens between the subscription and the
        next look must not be lost, and whoever is told too often only reads again.
        """
        before: dict[str, Change] = {}
        while True:
            if self._num_listeners or self._subscribed:
                before, self._is_new = ({} if self._is_new else before), False
                with contextlib.suppress(MemoryStoreError):  # it is busy: the next look finds the same changes
                    now = await anyio.to_thread.run_sync(self._changes)
                    for event in events(before, now):
                        await self.publish(event)
                    before = now
            await anyio.sleep(POLL_SECONDS)

    def _changes(self) -> dict[str, Change]:
        found = self._ws.memory.sessions.changes()
        running = [session for session, change in found.items() if change.running]
        for session in running:
            try:
                sync_session(self._ws, session)
            except VirtualMLEError as error:  # one damaged session must not silence the others
                logger.debug("session %s: %s", session, error)
        return self._ws.memory.sessions.changes() if running else found

    async def on_subscribe(self, context: Handled, params: SubscribeRequestParams) -> EmptyResult:
        """Serve resources/subscribe. Raises MCPError for what looks like a session's resource and is not announced."""
        await anyio.to_thread.run_sync(self._check, str(params.uri))
        connection = context.session._connection  # the SDK has no public way to learn that a connection has ended
        if connection not in self._subscribed:
            self._subscribed[connection] = (context.session, {})
            connection.exit_stack.callback(self._subscribed.pop, connection, None)
        uris = self._subscribed[connection][1]
        uris[str(params.uri)] = None
        self._is_new = True
        while len(uris) > MAX_SUBSCRIPTIONS:
            del uris[next(iter(uris))]
        return EmptyResult()

    def _check(self, uri: str) -> None:
        if not uri.startswith(SESSIONS):  # nothing else changes, and conformance suites subscribe to URIs of their own
            return
        session = uri.removeprefix(SESSIONS).partition("/")[0]
        if uri not in [each.uri.format(session=session) for each in SESSION_RESOURCES]:
            announced = listed([each.uri for each in SESSION_RESOURCES])
            sentence = f"changes of {shown(uri)} are not announced; subscribe to {announced}"
            raise MCPError(RESOURCE_NOT_FOUND, sentence, {"uri": uri})
        try:
            self._ws.memory.sessions.get(session)
        except SessionError as error:
            raise MCPError(RESOURCE_NOT_FOUND, str(error), {"uri": uri}) from None

    async def on_unsubscribe(self, context: Handled, params: UnsubscribeRequestParams) -> EmptyResult:
        """Serve resources/unsubscribe."""
        _, uris = self._subscribed.get(context.session._connection, (None, {}))
        uris.pop(str(params.uri), None)
        return EmptyResult()

    def serve_earlier_clients(self, server: MCPServer[Workspace]) -> None:
        """Let `server` serve, and therefore advertise, resources/subscribe to clients before 2026-07-28."""
        lowlevel = server._lowlevel_server  # MCPServer has no public way to serve a method of the specification
        lowlevel.add_request_handler("resources/subscribe", SubscribeRequestParams, self.on_subscribe)
        lowlevel.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, self.on_unsubscribe)


def events(before: dict[str, Change], now: dict[str, Change]) -> list[ServerEvent]:
    """What listeners are told: the resources of the sessions that have changed, and that there are more sessions."""
    sessions = changed(before, now)
    updated: list[ServerEvent] = [
        ResourceUpdated(uri=each.uri.format(session=session)) for session in sessions for each in SESSION_RESOURCES
    ]
    return updated + ([ResourcesListChanged()] if now.keys() - before.keys() else [])


def changed(before: dict[str, Change], now: dict[str, Change]) -> list[str]:
    """The sessions that have changed; a new one counts as changed."""
    return [session for session, change in now.items() if change != before.get(session)]
