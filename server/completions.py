"""Completions of the arguments of prompts and resource templates: datasets, backbones, sessions and trials."""

from collections.abc import Callable, Mapping

import anyio.to_thread
from mcp.server import MCPServer
from mcp.types import Completion, CompletionArgument, CompletionContext, PromptReference, ResourceTemplateReference

from ..data.catalogue import DEMO
from ..data.errors import SessionError
from ..data.wording import listed
from ..models.knobs.declaration import BACKBONES
from ..tools.workspace import Workspace
from .refusals import invalid, shown
from .resources import template_uris, trajectory_of

MOST = 100  # values of one answer, by the protocol

Reference = PromptReference | ResourceTemplateReference
Known = Mapping[str, str]
"""The arguments that the client has already filled in."""


def dataset_names(ws: Workspace) -> list[str]:
    """The datasets that a session can be opened on."""
    if ws.replay:
        return [ws.replay.dataset.name]
    return list(dict.fromkeys([*ws.catalogue.names(), DEMO]))


def session_ids(ws: Workspace) -> list[str]:
    """All sessions, the newest first."""
    return [session.id for session in reversed(ws.memory.sessions.all())]


def trial_handles(ws: Workspace, session: str) -> list[str]:
    """The trials that the trajectory of a session shows, the newest first; none for an unknown session."""
    try:
        return [trial.trial for trial in reversed(trajectory_of(ws, session).trials)]
    except SessionError:
        return []


VALUES: Mapping[str, Callable[[Workspace, Known], list[str]]] = {
    "dataset": lambda ws, _: dataset_names(ws),
    "backbone": lambda ws, _: list(BACKBONES),
    "session": lambda ws, _: session_ids(ws),
    "trial": lambda ws, known: trial_handles(ws, known.get("session", "")),
}
"""The values of an argument by its name, which means the same in every prompt and template."""


def add_completions(server: MCPServer[Workspace], ws: Workspace, prompts: Mapping[str, list[str]]) -> None:
    """Serve completion/complete; `prompts`: the arguments of each prompt."""
    templates = {uri: [name for name in VALUES if f"{{{name}}}" in uri] for uri in template_uris()}

    @server.completion()  # type: ignore[no-untyped-call, untyped-decorator]
    async def complete(ref: Reference, argument: CompletionArgument, context: CompletionContext | None) -> Completion:
        is_prompt = isinstance(ref, PromptReference)
        name, owners = (ref.name, prompts) if isinstance(ref, PromptReference) else (ref.uri, templates)
        if name not in owners:
            kind = "prompt" if is_prompt else "resource template"
            raise invalid(f"there is no {kind} {shown(name)}; there are {listed(list(owners))}")
        if argument.name not in owners[name]:
            raise invalid(f"{name} has no argument {shown(argument.name)}; it has {listed(owners[name])}")
        known = (context.arguments if context else None) or {}
        values = await anyio.to_thread.run_sync(VALUES[argument.name], ws, known)
        return completion(values, argument.value)


def completion(values: list[str], typed: str) -> Completion:
    """The values that begin with what was typed, in any case, and how many there are."""
    found = [value for value in values if value.casefold().startswith(typed.casefold())]
    return Completion(values=found[:MOST], total=len(found), has_more=len(found) > MOST)
