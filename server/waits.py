"""Waits for a running trial: the limit per call and client, and the progress messages during the wait.

A trial runs in its own process, and a wait only polls its state. A wait that ends early, or is cancelled, therefore
does not stop the trial. `still_running_advice` says so explicitly: with a shorter text, models started a trial twice.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from pydantic import BaseModel

from ..data.errors import MemoryStoreError, ServerError
from ..data.wording import listed
from ..tools.progress import RunningProgress
from ..tools.results import FinalResult, TrialObservation
from ..tools.wait_trial import wait_trial
from ..tools.workspace import Workspace

OVERRIDE = "VIRTUALMLE_WAIT_SECONDS"


class Cap(NamedTuple):
    """Seconds that one call of a client may take."""

    seconds: float
    followed: float | None = None  # with a progress token, of a client known to wait for as long as progress comes


UNKNOWN_CAP = Cap(25.0)
"""Of a client that is not listed, whether it sends a progress token or not: many send one only to show the progress,
and give up all the same. The shortest documented limit is JetBrains Copilot's 30 s."""

CAPS = {
    "claude-code": Cap(100.0),  # it moves a call to the background after 120 s, whatever progress comes
    "claude": Cap(45.0),  # Claude Desktop ("claude-ai"): 60 s per call, even with progress messages
    "cline": Cap(45.0),  # 60 s per call, unless its user has changed that
    "codex": Cap(240.0),  # 300 s per call
    "cursor": Cap(45.0),  # undocumented; observed limit of about 60 s
    "gemini-cli": Cap(540.0),  # 600 s per call
    "goose": Cap(240.0),  # 300 s per call
    "opencode": Cap(UNKNOWN_CAP.seconds, 540.0),  # versions that send a token count from the last progress
    "visual studio code": Cap(240.0),
    "vscode": Cap(240.0),
    "virtualmle": Cap(math.inf),  # our own agent loop waits as long as a trial takes
}
"""By prefix of the client's name; the longest matching prefix applies."""

POLL_SECONDS = 0.25  # polling costs a few file reads; a re-scored trial takes about a second
BUSY_SECONDS = 60.0  # the longest that another process may block memory.db before the wait fails
HEARTBEAT_SECONDS = 5.0  # clients that extend their limit on progress need a message well within 60 s
HALF_EPOCH_SECONDS = 60.0  # an epoch of unknown length is shown as half done after this time


def wait_override() -> float | None:
    """The limit in seconds for all clients from the environment variable OVERRIDE, `inf` = no limit; None if not set.

    Raises ServerError if the value is not a number of seconds >= 0.
    """
    text = os.environ.get(OVERRIDE)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise ServerError(f"{OVERRIDE} must be a number of seconds >= 0, or inf; it is {text!r}: correct or unset it")
    return seconds


def wait_cap(client: str, override: float | None = None, *, sends_token: bool = False) -> float:
    """Seconds that one call of this client may wait.

    client: the name that the client reported. sends_token: whether the call has a progress token.
    """
    if override is not None:
        return override
    matches = [prefix for prefix in CAPS if client.casefold().startswith(prefix)]
    cap = CAPS[max(matches, key=len)] if matches else UNKNOWN_CAP
    return cap.followed if sends_token and cap.followed is not None else cap.seconds


async def wait_until_over(
    ws: Workspace,
    observation: TrialObservation,
    handles: list[str],
    context: Context[Workspace],
    seconds: float,
    cap: float = math.inf,
) -> TrialObservation:
    """Poll trials until there is news of one of them or `seconds` have passed; returns the last observation.

    News is that the first of them is over, or that it has turned out meanwhile that it will not be kept. cap: the
    longest that a call of this client waits, for the answer of a wait that was shorter than its trial.
    """
    said = {name: getattr(observation, name) for name in ("rounded", "ignored")}  # by the call that has started it
    estimate = {"estimate": observation.estimate}
    last_polled = anyio.current_time()
    deadline = last_polled + seconds
    progress = ProgressMessages(context)
    poll = partial(wait_trial, ws, observation.session, handles, 0)
    known_hopeless = _progress(observation).hopeless
    while observation.status == "running":
        await progress.send(observation, handles)
        remaining = deadline - anyio.current_time()
        if remaining <= 0 or _progress(observation).hopeless != known_hopeless:
            return still_running(observation, handles, cap).model_copy(update=said | estimate)
        await anyio.sleep(min(POLL_SECONDS, remaining))
        try:
            observation = await anyio.to_thread.run_sync(poll)
            last_polled = anyio.current_time()
        except MemoryStoreError:  # memory.db is busy: the trial continues, and so does the wait
            if anyio.current_time() - last_polled > BUSY_SECONDS:
                raise
    return observation.model_copy(update=said)


async def wait_until_confirmed(
    again: Callable[[], BaseModel], result: FinalResult, context: Context[Workspace], seconds: float
) -> BaseModel:
    """Call finalize `again` until its confirmation is over or `seconds` have passed; returns the last result."""
    deadline = anyio.current_time() + seconds
    sent, sent_at = -1.0, -math.inf
    while result.progress:
        now, position = anyio.current_time(), result.progress.position
        if position > sent or now - sent_at > HEARTBEAT_SECONDS:
            sent, sent_at = max(position, sent + 1e-6), now  # strictly increasing, as the protocol requires
            running = f": {result.progress.running}" if result.progress.running else ""
            text = f"confirming {result.progress.done} of {result.progress.total}{running}"
            await context.report_progress(sent, result.progress.total, text)
        if now >= deadline:
            break
        await anyio.sleep(min(POLL_SECONDS, deadline - now))
        answer = await anyio.to_thread.run_sync(again)
        assert isinstance(answer, FinalResult)
        result = answer
    return result


def still_running(observation: TrialObservation, handles: list[str], cap: float) -> TrialObservation:
    """The answer of a wait that ends before the trials."""
    progress = _progress(observation).model_copy(update={"wait_limit_seconds": None if math.isinf(cap) else cap})
    changes = {"next": still_running_advice(observation, handles, cap), "progress": progress.shown()}
    return observation.model_copy(update=changes)


def still_running_advice(observation: TrialObservation, handles: list[str], cap: float = math.inf) -> str:
    """The text for `next` when the wait ends before the trials."""
    session, trial, hopeless = observation.session, observation.trial, _progress(observation).hopeless
    limit = "" if math.isinf(cap) else f" One call of this client waits {cap:g} s at most."
    if len(handles) > 1:
        return (
            f"Trials {listed(handles)} are still running and nothing failed. Call wait_trial(session='{session}') to "
            f"continue waiting for the first one. Do not start them again.{limit}"
        )
    call = f"wait_trial(session='{session}', trial='{trial}')"
    if hopeless:
        return (
            f"Trial {trial} is still running, and it will not be kept: {hopeless}. End it with cancel_trial"
            f"(session='{session}', trial='{trial}', keep_best=true), or call {call} to train it to its end."
        )
    return (
        f"Trial {trial} is still running and nothing failed. Call {call} to continue waiting. Do not start it "
        f"again.{limit}"
    )


class ProgressMessages:
    """Progress messages about one trial: completed epochs, strictly increasing, with a heartbeat in long epochs."""

    def __init__(self, context: Context[Workspace]) -> None:
        self._context = context
        self._epoch = -1
        self._epoch_since = self._sent_at = 0.0

    async def send(self, observation: TrialObservation, handles: list[str]) -> None:
        """Send a message if an epoch has ended since the last message, or if a heartbeat is due."""
        progress = _progress(observation)
        epoch, epochs = progress.epoch, progress.epochs
        now = anyio.current_time()
        if epoch > self._epoch:
            self._epoch, self._epoch_since = epoch, now
        elif now - self._sent_at < HEARTBEAT_SECONDS or epoch >= max(epochs, 1):
            return
        self._sent_at = now
        waited = now - self._epoch_since
        await self._context.report_progress(
            epoch + waited / (waited + HALF_EPOCH_SECONDS),  # always below epoch + 1
            epochs or None,
            describe(observation, [handle for handle in handles if handle != observation.trial]),
        )


def describe(observation: TrialObservation, others: list[str]) -> str:
    """The progress of a running trial in one short line, for people; `others` run as well."""
    text = f"{observation.trial}: {_progress(observation).line()}"
    return f"{text}; {listed(others)} too" if others else text


def _progress(observation: TrialObservation) -> RunningProgress:
    return RunningProgress.model_validate(observation.progress or {"stage": "loading"})
