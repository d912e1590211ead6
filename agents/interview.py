"""The replies of a language model to the decisions of a session: numbered, limited, and reused after a kill."""

from collections.abc import Sequence

from ..data.errors import LanguageModelError
from .base import Situation
from .llm.messages import LanguageModel, Message, Reply, Request, ToolSpec

STEPS_PER_TRIAL = 8
"""The step limit of a run is this times the trials of the budget, unless it is given."""
MAX_OUTPUT_TOKENS = 2000
RESUME = "the session is kept: resume it, with another --model if this one cannot do it"


class Interview:
    """Asks a model, at most `max_steps` times in this process.

    A decision is named by a text that a resumed session gives again, such as the number of trials used. Its replies are
    numbered. If an earlier process has paid for some of them, the last one is given first: it may not have been acted
    upon, and acting upon it once more does nothing.
    """

    def __init__(self, model: LanguageModel, max_steps: int | None = None) -> None:
        self._model = model
        self._max_steps = max_steps
        self._num_asked = 0
        self._decision = ""
        self._next = 0  # number of the decision's next reply

    async def reply(
        self,
        situation: Situation,
        decision: str,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        temperature: float | None = None,
    ) -> Reply:
        """The next reply for a decision; raises LanguageModelError if there is none or the step limit is reached."""
        session = situation.state.session
        if self._decision != decision:
            paid = self._paid(session, decision)
            self._decision, self._next = decision, len(paid)
            if paid:
                return paid[-1]
        limit = self._max_steps or STEPS_PER_TRIAL * situation.state.budget.trials_max
        if self._num_asked >= limit:
            raise LanguageModelError(
                f"the model has answered {limit} times in this run, which is the step limit; the session is kept: "
                "resume it for as many steps more, or set the limit with --max-steps"
            )
        step = f"{decision}.{self._next}"
        reply = await self._model.complete(
            Request(tuple(messages), tuple(tools), MAX_OUTPUT_TOKENS, temperature, session=session, step=step)
        )
        self._num_asked += 1
        self._next += 1
        return reply

    def _paid(self, session: str, decision: str) -> list[Reply]:
        """The replies that earlier processes have paid for this decision."""
        paid: list[Reply] = []
        while (reply := self._model.recall(session, f"{decision}.{len(paid)}")) is not None:
            paid.append(reply)
        return paid
