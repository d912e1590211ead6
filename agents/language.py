"""An agent that a language model drives, each step with a prompt of its own.

Stateless: every prompt is built anew from the tools' views (`agents/prompt.py`) and bounded in size, so that the tokens
of a session grow with the number of its trials and not with their square. The actions that need no thought (measure the
plain default, wait for a trial, finish the look of a frozen session) are taken without asking.

A session can be killed at any moment. A reply that was paid but perhaps not acted upon is acted upon once more: its
calls are idempotent, because the server answers a repeated reflection or configuration without doing anything.
"""

from collections.abc import Sequence

from ..data.errors import CostCapError, LanguageModelError
from ..memory.records import Hypothesis
from .base import SKIPPED, Action, Agent, Finalize, ReadMemory, Reflect, RunTrial, Situation
from .interview import RESUME, Interview
from .llm.messages import LanguageModel, Message, Reply
from .prompt import recent, step_text, system_text
from .reflecting import reflect_on, summarise
from .required import close, wait
from .verbs import CallError, actions_of, tool_specs

MAX_MISTAKES = 5
"""Replies in a row without a call that can be executed, after which the session is left for later."""
MAX_REFUSED = 10
"""Calls in a row that the server refuses, after which the session is left for later."""
MANY_REFUSED = 3
"""Refusals in a row after which the model may end the session early: perhaps nothing is left to try."""
MAX_READS = 3
"""Readings of the memory after which a step no longer offers them."""

BASELINE = Hypothesis(dimension="optimisation", direction="same", reason="the baseline of the later trials")
"""The hypothesis of the first trial, the plain default, which needs no model either."""

_STOPPED = {
    "length": "your reply was cut off at the output limit; be shorter, and call a tool",
    "refusal": "you refused; the task is to tune a recommender with the tools given",
}


class LanguageAgent(Agent):
    """Asks a language model for the next calls."""

    corrects = True

    def __init__(self, model: LanguageModel, seed: int = 0, max_steps: int | None = None) -> None:
        super().__init__(seed)
        self.interview = Interview(model, max_steps)
        self._has_asked_to_close = False

    async def decide(self, situation: Situation) -> Sequence[Action]:
        """What must be done without asking; otherwise the calls of the model's next reply."""
        state = situation.state
        if (forced := unasked(situation)) is not None:
            return (forced,)
        if state.stop.stop:
            return await self._close(situation)
        try:
            return await self._ask(situation, self.tools(situation), f"{state.budget.trials_used}")
        except CostCapError as error:
            if situation.running:
                return (wait(situation),)
            if state.incumbent is None:
                raise
            return computed_close(situation, str(error))

    def tools(self, situation: Situation) -> list[str]:
        """The names of the tools that this step offers."""
        state = situation.state
        done = recent(situation)
        reads = sum(isinstance(outcome.action, ReadMemory) for outcome in done)
        late = state.budget.trials_used >= state.budget.trials_max / 2
        stuck = sum(outcome.refused for outcome in done) >= MANY_REFUSED
        offered = {
            "write_reflection": state.with_reflection,
            "run_trial": True,
            "sweep": "sweep" in situation.brief.tools and state.incumbent is not None,
            "read_memory": reads < MAX_READS,
            "wait_trial": bool(situation.running),
            "finalize": state.incumbent is not None and (late or stuck) and not situation.running,  # else too early
        }
        return [name for name, offer in offered.items() if offer]

    async def reply(
        self, situation: Situation, tools: Sequence[str], decision: str, errors: Sequence[str]
    ) -> Reply:
        """The model's reply to a prompt that says all; `errors`: why its last replies could not be executed."""
        prompt = (Message("system", system_text(situation.brief)), Message("user", step_text(situation, errors)))
        return await self.interview.reply(situation, decision, prompt, tool_specs(tools))

    async def _ask(self, situation: Situation, tools: Sequence[str], decision: str) -> list[Action]:
        """Ask until a reply can be executed, at most MAX_MISTAKES times."""
        self._check_refusals(situation)
        errors: list[str] = []
        while len(errors) < MAX_MISTAKES:
            reply = await self.reply(situation, tools, decision, errors)
            try:
                return actions_in(reply, situation, tools)
            except CallError as error:
                errors.append(str(error))
        raise LanguageModelError(
            f"{MAX_MISTAKES} replies in a row had no call that could be executed; the last one: {errors[-1]}; {RESUME}"
        )

    def _check_refusals(self, situation: Situation) -> None:
        refused = [outcome.text for outcome in recent(situation) if outcome.refused and outcome.text != SKIPPED]
        if len(refused) >= MAX_REFUSED:
            raise LanguageModelError(
                f"the server refused {len(refused)} calls of the model in a row; the last one: {refused[-1]}; {RESUME}"
            )

    async def _close(self, situation: Situation) -> Sequence[Action]:
        """The model's Cognition Summary, asked for once; if there is none, the computed one."""
        if self._has_asked_to_close:
            return computed_close(situation, _last_refusal(situation))
        self._has_asked_to_close = True
        tools = ["write_reflection", "finalize"] if situation.state.with_reflection else ["finalize"]
        try:
            reply = await self.reply(situation, tools, f"{situation.state.budget.trials_used}.close", ())
            actions = actions_in(reply, situation, tools)
        except (LanguageModelError, CallError) as error:
            return computed_close(situation, str(error))
        if not any(isinstance(action, Finalize) for action in actions):
            return computed_close(situation, "it did not call finalize")
        return [*missing_reflection(situation, actions), *actions]


def unasked(situation: Situation) -> Action | None:
    """What must be done without asking the model; None if it decides."""
    state = situation.state
    if state.state != "open":
        return close(situation)
    if situation.running and (state.stop.stop or not (situation.has_free_place or state.pending_reflection)):
        return wait(situation)
    if state.budget.trials_used == 0 and not situation.refused and not state.stop.stop:
        return RunTrial({}, "default", BASELINE)
    return None


def actions_in(reply: Reply, situation: Situation, tools: Sequence[str]) -> list[Action]:
    """The actions of a reply; raises CallError if there is nothing to execute."""
    if not reply.calls:
        raise CallError(_STOPPED.get(reply.stop, "your reply had no tool call; answer with tool calls only"))
    if reply.stop == "length" and reply.calls[-1].arguments is None:
        raise CallError(_STOPPED["length"])
    actions = actions_of(reply.calls, situation, tools)
    if not actions:
        raise CallError("the reflection is written already; run the next trial")
    return actions


def missing_reflection(situation: Situation, actions: Sequence[Action]) -> list[Action]:
    """The computed reflection on the last trial, if one is due and the actions contain none."""
    pending = situation.state.pending_reflection
    if pending is None or any(isinstance(action, Reflect) for action in actions):
        return []
    return [reflect_on(situation, pending)]


def computed_close(situation: Situation, reason: str) -> list[Action]:
    """End the session with the summary and rules computed from the trials; the summary says that it is computed."""
    note = f"the Cognition Summary is computed from the measurements, because the language model gave none: {reason}"
    summary = f"({note[0].upper()}{note[1:]}.) {summarise(situation)}"
    closing = close(situation)
    return [*missing_reflection(situation, ()), Finalize(summary, closing.rules, note)]


def _last_refusal(situation: Situation) -> str:
    refused = [o.text for o in situation.outcomes if o.refused and o.text != SKIPPED]
    return refused[-1] if refused else "its call was refused"
