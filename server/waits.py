"""How long one call may wait for a trial, and what the client hears meanwhile.

A trial runs in its own process; waiting for it is only looking. So a wait that is cut short, cancelled or never
answered stops nothing, and the overrun text says so: models that were told less started the same trial twice.
"""

import math
import os
from functools import partial

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context

from ..data.errors import MemoryStoreError, ServerError
from ..tools.results import TrialObservation
from ..tools.wait_trial import wait_trial
from ..tools.workspace import Workspace

OVERRIDE = "VIRTUALMLE_WAIT_SECONDS"

CAPS = {
    "claude-code": 100.0,  # moves a call to the background at 120 s
    "claude": 45.0,  # Claude Desktop ("claude-ai"): 60 s for every call, whatever the progress
    "cursor": 45.0,  # undocumented; behaves like 60 s
    "codex": 240.0,  # 300 s for every call
    "visual studio code": 240.0,
    "vscode": 240.0,
    "virtualmle": math.inf,  # our own loop waits as long as a trial takes
}
"""Seconds per call by the beginning of the client's name; the longest that matches counts."""

UNKNOWN_CAP = 25.0  # the shortest documented limit is JetBrains Copilot's 30 s

LOOK_SECONDS = 0.25  # a look costs a few file reads; a re-scored trial takes about a second
BUSY_SECONDS = 60.0  # another process may hold memory.db for a while, not for good
HEARTBEAT_SECONDS = 5.0  # clients that extend their limit on progress want some well within 60 s
HALF_EPOCH_SECONDS = 60.0  # an epoch of unknown length shows as half done after this long


def wait_override() -> float | None:
    """The limit in seconds that a person set for every client by environment, `inf` for none; else None.

    Raises ServerError for what is not a number of seconds.
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


def wait_cap(client: str, override: float | None = None) -> float:
    """Seconds that one call of this client may wait; `client` is the name it gave itself."""
    if override is not None:
        return override
    matches = [prefix for prefix in CAPS if client.casefold().startswith(prefix)]
    return CAPS[max(matches, key=len)] if matches else UNKNOWN_CAP


async def wait_until_over(
    ws: Workspace, observation: TrialObservation, context: Context[Workspace], seconds: float
) -> TrialObservation:
    """Look at a trial until it is over or `seconds` have passed; its last observation."""
    seen = anyio.current_time()
    deadline = seen + seconds
    news = ProgressNews(context)
    look = partial(wait_trial, ws, observation.session, observation.trial, 0)
    while observation.status == "running":
        await news.tell(observation)
        left = deadline - anyio.current_time()
        if left <= 0:
            return observation.model_copy(update={"next": overrun(observation)})
        await anyio.sleep(min(LOOK_SECONDS, left))
        try:
            observation = await anyio.to_thread.run_sync(look)
            seen = anyio.current_time()
        except MemoryStoreError:  # memory.db is busy: the trial goes on without it, and so may the wait
            if anyio.current_time() - seen > BUSY_SECONDS:
                raise
    return observation


def overrun(observation: TrialObservation) -> str:
    """What to do with a trial that outlasts the wait."""
    session, trial = observation.session, observation.trial
    return (
        f"Trial {trial} is still running; nothing failed, only this call's wait is up. Call "
        f"wait_trial(session='{session}', trial='{trial}') to go on waiting. Do not start it again."
    )


class ProgressNews:
    """Progress messages about one trial: epochs done, strictly increasing, with a heartbeat inside long epochs."""

    def __init__(self, context: Context[Workspace]) -> None:
        self._context = context
        self._epoch = -1
        self._epoch_since = self._sent_at = 0.0

    async def tell(self, observation: TrialObservation) -> None:
        """Send what is new, if anything is."""
        progress = observation.progress or {}
        epoch, epochs = progress.get("epoch", 0), progress.get("epochs", 0)
        now = anyio.current_time()
        if epoch > self._epoch:
            self._epoch, self._epoch_since = epoch, now
        elif now - self._sent_at < HEARTBEAT_SECONDS or epoch >= max(epochs, 1):
            return
        self._sent_at = now
        waited = now - self._epoch_since
        await self._context.report_progress(
            epoch + waited / (waited + HALF_EPOCH_SECONDS),  # below epoch + 1, however long it takes
            epochs or None,
            describe(observation),
        )


def describe(observation: TrialObservation) -> str:
    """A running trial in a few words, for a person who watches."""
    progress = observation.progress or {}
    text = f"{observation.trial}: {progress.get('stage', 'loading')}"
    if progress.get("epochs"):
        text += f", epoch {progress['epoch']}/{progress['epochs']}"
    if progress.get("best_ndcg10") is not None:
        text += f", best validation NDCG@10 {progress['best_ndcg10']:.4f}"
    return text
