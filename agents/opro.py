"""OPRO: a language model as an optimiser (Yang et al. 2024, "Large Language Models as Optimizers", arXiv 2309.03409).

The model sees configurations and scores only: no tools, reflections, measured effects or memory of other sessions.

- Section 3.1: five starting points, at random; here those of the seeding, such as the plain default, come first.
- Section 2.3: several solutions in each step, for stability; Section 5.1: eight, each from a call of its own with the
  same meta-prompt at temperature 1.0. Each solution is a trial of the session, so that a step takes eight trials.
- Section 2: the search ends when the model proposes nothing new any more, or when the budget is used.
"""

from collections.abc import Sequence
from typing import ClassVar

from ..data.errors import CostCapError, LanguageModelError
from ..memory.records import Hypothesis
from ..tools.views import KnobValues
from .base import Action, Agent, RunTrial, Situation
from .history import History
from .interview import RESUME, Interview
from .llm.messages import LanguageModel, Message
from .opro_prompt import Pair, meta_prompt, parse_solution
from .reflecting import dimension_of
from .required import close, required_action, wait
from .sampler import Sampler
from .seeding import num_seeds

NUM_STARTS = 5
SOLUTIONS_PER_STEP = 8
TEMPERATURE = 1.0
MAX_FRUITLESS = 12
"""Replies in a row without a new configuration after which the model counts as unable to propose one."""


class Opro(Agent):
    """Asks for configurations that score higher than all measured so far. `starts` runs the starting points."""

    reflects: ClassVar[bool] = False

    def __init__(self, model: LanguageModel, starts: Sampler, max_steps: int | None = None) -> None:
        super().__init__(starts.seed)
        self._interview = Interview(model, max_steps)
        self._starts = starts

    async def decide(self, situation: Situation) -> Sequence[Action]:
        """A starting point, or the next solution of the model."""
        if (action := required_action(situation)) is not None:
            return (action,)
        history = History(situation)
        if history.trials_used < self._num_starts(history) or not history.finished:
            return (self._starts.act(situation),)
        try:
            return (await self._solve(situation, history),)
        except CostCapError as error:
            return (wait(situation) if situation.running else close(situation, f"the search has ended: {error}"),)

    async def _solve(self, situation: Situation, history: History) -> Action:
        """The trial of the model's next new solution; ends the session if it proposes nothing new."""
        space = history.space
        prompt = (Message("user", meta_prompt(space.backbone, list(space.knobs.values()), self._pairs(history))),)
        unreadable = 0
        for _ in range(MAX_FRUITLESS):
            reply = await self._interview.reply(situation, f"{history.trials_used}", prompt, temperature=TEMPERATURE)
            settings = parse_solution(reply.text)
            if settings is None:
                unreadable += 1
            elif (changes := space.effective_changes(settings)) is not None and history.is_new(changes, "default"):
                return _trial(changes, history)
        if unreadable == MAX_FRUITLESS:
            raise LanguageModelError(
                f"{MAX_FRUITLESS} replies in a row had no configuration in square brackets; {RESUME}"
            )
        if situation.running:
            return wait(situation)
        return close(situation, f"the model proposed nothing new in {MAX_FRUITLESS} replies in a row")

    def _num_starts(self, history: History) -> int:
        return max(NUM_STARTS, num_seeds(history, self._starts.seeding))

    def _pairs(self, history: History) -> list[Pair]:
        """The pairs that all solutions of the present step see: those of the steps before."""
        starts = self._num_starts(history)
        steps = (history.trials_used - starts) // SOLUTIONS_PER_STEP
        known = starts + steps * SOLUTIONS_PER_STEP
        earlier = [trial for trial in history.finished if trial.number <= known] or history.finished
        return [(trial.settings, trial.ndcg or 0.0) for trial in earlier]


def _trial(settings: KnobValues, history: History) -> RunTrial:
    dimension = dimension_of(settings, history.space)
    return RunTrial(settings, "default", Hypothesis(dimension=dimension, direction="better", reason="OPRO"))
