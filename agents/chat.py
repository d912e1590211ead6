"""The chat driver: one conversation that grows with every call and its result, instead of a new prompt in each step.

The model sees everything that it has said, so that the tokens of a session grow with the square of its number of trials
(docs/language-models.md compares the drivers). The conversation is kept on disk, so that a session can be resumed. A
call of an earlier process that has no result yet is executed once more, which does nothing if it was executed.
"""

from collections.abc import Sequence
from pathlib import Path

from .base import Finalize, Outcome, ReadMemory, Reflect, RunTrial, Situation, Sweep, WaitTrial
from .conversation import Conversation
from .language import LanguageAgent
from .llm.messages import LanguageModel, Message, Reply, ToolCall, Usage
from .prompt import READ_LENGTH, clip, request_text, step_text, system_text
from .verbs import tool_specs

FILE = "chat.jsonl"
_ACTIONS = {
    "write_reflection": Reflect, "run_trial": RunTrial, "sweep": Sweep, "wait_trial": WaitTrial,
    "read_memory": ReadMemory, "finalize": Finalize,
}  # fmt: skip


class ChatAgent(LanguageAgent):
    """Continues one conversation. `sessions`: the folder with a folder per session; None keeps nothing on disk."""

    def __init__(
        self, model: LanguageModel, seed: int = 0, max_steps: int | None = None, sessions: Path | None = None
    ) -> None:
        super().__init__(model, seed, max_steps)
        self._sessions = sessions
        self._talk: Conversation | None = None
        self._num_seen = 0  # outcomes before the last reply was acted upon

    async def reply(
        self, situation: Situation, tools: Sequence[str], decision: str, errors: Sequence[str]
    ) -> Reply:
        """The next reply of the conversation; the last one of an earlier process, if its calls have no results yet."""
        if self._talk is None:
            self._talk = self._open(situation.state.session)
            if self._talk.messages and self._talk.messages[-1].role == "assistant":
                self._num_seen = len(situation.outcomes)
                return _as_reply(self._talk.messages[-1])
        outcomes = situation.outcomes[self._num_seen :]
        self._talk.say(*next_messages(self._talk.messages, situation, outcomes, errors))
        place = f"chat{len(self._talk.messages)}"
        reply = await self.interview.reply(situation, place, self._talk.messages, tool_specs(tools))
        self._talk.say(Message("assistant", reply.text, reply.calls))
        self._num_seen = len(situation.outcomes)
        return reply

    def _open(self, session: str) -> Conversation:
        return Conversation(self._sessions / session / FILE if self._sessions else None)


def next_messages(
    said: Sequence[Message], situation: Situation, outcomes: Sequence[Outcome], errors: Sequence[str]
) -> list[Message]:
    """What follows in the conversation: the first prompt, or the results of the last calls and what to do now.

    The messages may have been appended by a process that was killed before the model answered: then nothing follows.
    """
    if not said:
        return [Message("system", system_text(situation.brief)), Message("user", step_text(situation))]
    last = said[-1]
    if last.role != "assistant":
        return []
    texts = [errors[-1]] * len(last.calls) if errors else result_texts(last.calls, outcomes)
    unasked = [] if errors else outcomes[num_consumed(last.calls, outcomes) :]
    results = [
        Message("tool", clip(text, READ_LENGTH), call_id=call.id)
        for call, text in zip(last.calls, texts, strict=True)
    ]
    ended = [clip(outcome.text, READ_LENGTH) for outcome in unasked if isinstance(outcome.action, WaitTrial)]
    mistake = [] if last.calls else errors[-1:]
    now = "\n\n".join([*mistake, *ended, f"{_budget(situation)} {request_text(situation)}"])
    return [*results, Message("user", now)]


def result_texts(calls: Sequence[ToolCall], outcomes: Sequence[Outcome]) -> list[str]:
    """The results of calls. The outcomes come in the order of the calls; a reflection may precede its call's action."""
    return ["\n".join(outcome.text for outcome in own) or "nothing to do" for own in _results(calls, outcomes)]


def num_consumed(calls: Sequence[ToolCall], outcomes: Sequence[Outcome]) -> int:
    """The number of outcomes that are results of calls; the rest came of actions that the model was not asked for."""
    return sum(len(own) for own in _results(calls, outcomes))


def _results(calls: Sequence[ToolCall], outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """The outcomes of each call."""
    queue, results = list(outcomes), []
    for call in calls:
        own: list[Outcome] = []
        while queue and not any(isinstance(outcome.action, _ACTIONS[call.name]) for outcome in own):
            if call.name == "write_reflection" and not isinstance(queue[0].action, Reflect):
                break  # the reflection was written already
            own.append(queue.pop(0))
        results.append(own)
    return results


def _as_reply(message: Message) -> Reply:
    """A message of the model as the reply that it was."""
    return Reply(message.text, message.calls, Usage(), "tool_calls" if message.calls else "end", "")


def _budget(situation: Situation) -> str:
    budget = situation.state.budget
    return f"Trials {budget.trials_used} of {budget.trials_max}; incumbent {situation.state.incumbent or 'none'}."
