"""The resources: the protocol page, and each session's trajectory as JSON, as Markdown and as pictures.

All of them are made of views that agents may read as well. Sessions come and go while a server runs, so that the list
is made for each request, newest session first and in pages.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.types import ListResourcesResult, PaginatedRequestParams, Resource

from ..data.errors import SessionError, VirtualMLEError
from ..memory.records import SessionRecord
from ..tools.read_memory import read_memory
from ..tools.views import NDCG10, TrajectoryView, TrialView
from ..tools.workspace import Workspace
from .pages import trajectory_page, trial_page
from .pictures import Curve, best_so_far, learning_curves
from .refusals import unknown_cursor

SESSIONS_PER_PAGE = 25
CURVES = 5  # the best models; a picture of more is hard to read
MARKDOWN = "text/markdown"
TRIAL = "session://{session}/trials/{trial}.md"


class SessionResource(NamedTuple):
    """A resource that every session has."""

    uri: str  # a template with {session}
    title: str
    mime_type: str
    description: str
    content: Callable[[Workspace, str], str | bytes]


def trajectory_json(ws: Workspace, session: str) -> str:
    """The view 'trajectory' as JSON."""
    return json.dumps(read_memory(ws, session, view="trajectory").content)


def trajectory_markdown(ws: Workspace, session: str) -> str:
    """The view 'trajectory' as a page."""
    return trajectory_page(trajectory_of(ws, session))


def best_picture(ws: Workspace, session: str) -> bytes:
    """PNG of the best so far."""
    return best_so_far(trajectory_of(ws, session).trials)


def curves_picture(ws: Workspace, session: str) -> bytes:
    """PNG of the learning curves of the best trials."""
    ranked = sorted(trajectory_of(ws, session).trials, key=lambda trial: -trial.metrics.get(NDCG10, 0.0))
    curves = (_curve(ws, session, trial.trial) for trial in ranked if NDCG10 in trial.metrics)
    trained = {tuple(curve.values): curve for curve in curves if curve.values}  # trials that re-score a model share it
    return learning_curves(list(trained.values())[:CURVES])


SESSION_RESOURCES = (
    SessionResource(
        "session://{session}/trajectory", "Trajectory", "application/json",
        "Every trial and reflection of a session.", trajectory_json,
    ),
    SessionResource(
        "session://{session}/trajectory.md", "Trajectory as a page", MARKDOWN,
        "Every trial and reflection of a session, as a page to read.", trajectory_markdown,
    ),
    SessionResource(
        "session://{session}/best-so-far.png", "Best so far", "image/png",
        "Picture: validation NDCG@10 by trial, and the best so far.", best_picture,
    ),
    SessionResource(
        "session://{session}/learning-curves.png", "Learning curves", "image/png",
        "Picture: validation NDCG@10 by epoch of the best trials.", curves_picture,
    ),
)  # fmt: skip


def add_resources(server: MCPServer[Workspace], ws: Workspace) -> None:
    """Register the resources and their templates, and list those of the sessions that exist."""

    @server.resource("sandbox://protocol", title="SANDBOX.md", mime_type=MARKDOWN)
    def protocol() -> str:
        """The protocol in force: action space, budgets and rules."""
        return ws.protocol.text

    for each in SESSION_RESOURCES:
        server.resource(
            each.uri, name=each.title, title=each.title, mime_type=each.mime_type, description=each.description
        )(_reader(ws, each.content))

    @server.resource(TRIAL, title="Trial as a page", mime_type=MARKDOWN)
    def trial(session: str, trial: str) -> str:
        """One trial of a session: its changes, figures, verdict and learning curve."""
        with _refusals():
            return trial_page(TrialView.model_validate(read_memory(ws, session, view="trial", trial=trial).content))

    # The SDK lists what is registered, in one page; its handler takes the place of that of the low-level server
    server._lowlevel_server.add_request_handler("resources/list", PaginatedRequestParams, _lister(server, ws))


def template_uris() -> list[str]:
    """The URI templates, in the order of their list."""
    return [*(each.uri for each in SESSION_RESOURCES), TRIAL]


def trajectory_of(ws: Workspace, session: str) -> TrajectoryView:
    """The view 'trajectory' of a session. Raises SessionError for an unknown one."""
    return TrajectoryView.model_validate(read_memory(ws, session, view="trajectory").content)


def _curve(ws: Workspace, session: str, trial: str) -> Curve:
    """The learning curve of a finished trial; empty if nothing was trained."""
    view = TrialView.model_validate(read_memory(ws, session, view="trial", trial=trial).content)
    epochs = [epoch for epoch in view.curve_epochs if epoch.get("ndcg10") is not None]
    return Curve(trial, [epoch["epoch"] for epoch in epochs], [epoch["ndcg10"] for epoch in epochs])


def _reader(ws: Workspace, content: Callable[[Workspace, str], str | bytes]) -> Callable[[str], str | bytes]:
    def read(session: str) -> str | bytes:
        with _refusals():
            return content(ws, session)

    return read


@contextmanager
def _refusals() -> Iterator[None]:
    """Errors that a caller can correct, as errors of the protocol with our own sentence."""
    try:
        yield
    except SessionError as error:
        raise ResourceNotFoundError(str(error)) from error
    except VirtualMLEError as error:
        raise ResourceError(str(error)) from error


def _lister(server: MCPServer[Workspace], ws: Workspace) -> Any:
    async def list_resources(_: ServerRequestContext[Any, Any], params: PaginatedRequestParams) -> ListResourcesResult:
        sessions = await anyio.to_thread.run_sync(ws.memory.sessions.all)
        page, cursor = _page(sessions[::-1], params.cursor)
        fixed = [] if params.cursor else await server.list_resources()
        return ListResourcesResult(resources=[*fixed, *map(_listed, page)], next_cursor=cursor)

    return list_resources


Entry = tuple[SessionRecord, SessionResource]


def _page(sessions: list[SessionRecord], cursor: str | None) -> tuple[list[Entry], str | None]:
    """The entries after the session that `cursor` names, and the cursor of the next page if there is one."""
    start = 0
    if cursor:
        ids = [session.id for session in sessions]
        if cursor not in ids:
            raise unknown_cursor(cursor)
        start = ids.index(cursor) + 1
    page = sessions[start : start + SESSIONS_PER_PAGE]
    has_more = len(sessions) > start + SESSIONS_PER_PAGE
    return [(session, each) for session in page for each in SESSION_RESOURCES], page[-1].id if has_more else None


def _listed(entry: Entry) -> Resource:
    session, resource = entry
    return Resource(
        uri=resource.uri.format(session=session.id),
        name=f"{session.id}: {resource.title.lower()}",
        title=f"{session.id}: {resource.title.lower()}",
        description=resource.description,
        mime_type=resource.mime_type,
    )
