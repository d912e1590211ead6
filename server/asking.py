"""Asks a person before `finalize` ends a session, where the client can show a question (MCP elicitation).

The question protects against accidents; it is no authorisation, for a client may answer it by itself. Some clients say
that they can ask and then decline every question unseen, so that whoever runs the server can switch it off: ASK. A
client that cannot ask behaves as if there were no question. `confirm=true` is needed in any case.
"""

import os
from typing import Annotated, Any

import anyio.to_thread
from mcp.server.elicitation import AcceptedElicitation, DeclinedElicitation
from mcp.server.mcpserver import Context, Elicit, ElicitationResult, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field

from ..data.errors import ServerError, VirtualMLEError
from ..data.wording import counted
from ..tools.cognition import best_first
from ..tools.finalize import check_texts
from ..tools.sync import sync_session
from ..tools.workspace import Workspace
from ..tools.write_reflection import RuleInput
from .refusals import FIRST_WITHOUT_HANDSHAKE

ASK = "VIRTUALMLE_ASK_BEFORE_FINALIZE"
UNSEEN = f"If no question was shown, this client answers by itself: whoever runs the server can set {ASK}=no."
UNREADABLE = "Resolver "
"""How the SDK's message begins about an answer without the form of the question."""
ANSWER = "answer"
"""The parameter of the wired finalize that carries the person's answer; it is not part of its schema."""


class Ending(BaseModel):
    """The form that the person sees: one box, ticked already, so that to accept is enough."""

    end_session: bool = Field(default=True, title="End the session", description="It cannot be reopened.")


def asks_person() -> bool:
    """Whether clients that can ask are to ask, from the environment. Raises ServerError for a value but yes and no."""
    text = os.environ.get(ASK) or "yes"
    if text not in ("yes", "no"):
        raise ServerError(f"{ASK} must be yes or no; it is {text!r:.60}: correct or unset it")
    return text == "yes"


def answer_type(ws: Workspace) -> Any:
    """The annotation of the parameter ANSWER: the SDK fills it with the answer before the tool runs."""

    async def finalize(
        context: Context[Workspace], session: str, confirm: bool, cognition_summary: str, rules: Any
    ) -> Ending | Elicit[Ending]:
        if not confirm or not can_ask(context):
            return Ending()
        try:
            question = await anyio.to_thread.run_sync(question_of, ws, session, cognition_summary, rules or [])
        except VirtualMLEError as error:
            raise ToolError(str(error)) from error
        return Elicit(question, Ending) if question else Ending()

    return Annotated[ElicitationResult[Ending], Resolve(finalize)]


def can_ask(context: Context[Workspace]) -> bool:
    """Whether this client can show a form to a person now."""
    capabilities = context.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    if elicitation is None or (elicitation.form is None and elicitation.url is not None):
        return False
    asks_in_its_answer = (context.protocol_version or "") >= FIRST_WITHOUT_HANDSHAKE
    return asks_in_its_answer or context.session.can_send_request


def question_of(ws: Workspace, session: str, summary: str, rules: list[RuleInput]) -> str:
    """The question before a session ends; empty if finalize would end nothing now, so that there is nothing to ask.

    Raises the errors of texts that finalize would refuse: nobody is asked for a call that cannot succeed.
    """
    running = sync_session(ws, session)
    record = ws.memory.sessions.get(session)
    trials = ws.memory.trials.all(session)
    finished = best_first(trials)
    is_confirming = bool(ws.memory.trials.repetitions(session))  # the person was asked when it began
    if record.state != "open" or running or is_confirming or not finished:
        return ""
    check_texts(ws, record, summary, rules)
    best = finished[0]  # what finalize selects, unless the protocol has the best ones confirmed first
    assert best.outcome is not None
    known = f"{best.handle}, validation NDCG@10 {best.outcome.metrics['ndcg@10']:.4f}"
    return (
        f"The agent wants to end the VirtualMLE session {session} ({counted(len(trials), 'trial')}; the best is "
        f"{known}) and to evaluate it on the test set, which is possible once. The session cannot be reopened. End it?"
    )


def check_answer(answer: Any, session: str) -> None:
    """Raise ToolError, with what the agent is to do, unless the person has agreed."""
    if isinstance(answer, AcceptedElicitation) and answer.data.end_session:
        return
    declined = isinstance(answer, AcceptedElicitation | DeclinedElicitation)
    found = "declined to end" if declined else "closed the question whether to end"
    todo = "Go on with the session, or ask the person what is missing" if declined else "Ask the person what to do"
    raise ToolError(
        f"the person {found} session {session}: it is still open, and nothing was used. {todo}; call finalize again "
        f"only when the person says so. {UNSEEN}"
    )


def in_our_words(text: str) -> str:
    """The text of an error, with our words for that of the SDK about an answer without the form of the question."""
    if not text.startswith(UNREADABLE):
        return text
    return f"the client's answer to the question whether to end the session cannot be read; nothing happened. {UNSEEN}"
