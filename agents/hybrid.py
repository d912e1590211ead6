"""Hybrid: a sampler proposes every trial, and a language model decides on three of ten, with the proposal in view.

Which trials are the model's follows from their numbers alone, so that a resumed session continues with the same plan.
The sampler learns from all trials. If the model gives no call that can be executed, if its choice is invalid or known,
or if the server refuses it, the proposal of the sampler runs, so that no trial is lost.
"""

from collections.abc import Sequence
from typing import ClassVar

from ..data.errors import CostCapError
from .base import Action, Agent, RunTrial, Situation
from .history import History
from .interview import Interview
from .language import actions_in
from .llm.messages import LanguageModel, Message
from .observed import settings_text
from .prompt import step_text, system_text
from .required import required_action
from .verbs import CallError, tool_specs

MODEL_TRIALS = (4, 7, 0)
"""Last digits of the trial numbers on which the model decides; the first three trials are the sampler's."""
TOOLS = ("run_trial",)


class Hybrid(Agent):
    """Runs what its sampler proposes, or what the model decides on in view of the proposal."""

    reflects: ClassVar[bool] = False

    def __init__(self, model: LanguageModel, sampler: Agent, max_steps: int | None = None) -> None:
        super().__init__(sampler.seed)
        self._interview = Interview(model, max_steps)
        self._sampler = sampler

    async def decide(self, situation: Situation) -> Sequence[Action]:
        """The sampler's action, or on its trials the model's."""
        proposal = required_action(situation) or self._sampler.act(situation)
        if not isinstance(proposal, RunTrial) or situation.refused or not is_model_trial(situation):
            return (proposal,)
        return (await self._choose(situation, proposal),)

    async def _choose(self, situation: Situation, proposal: RunTrial) -> RunTrial:
        """The model's trial; the proposal if it gives none."""
        messages = (Message("system", system_text(situation.brief)), Message("user", _question(situation, proposal)))
        decision = f"{situation.state.budget.trials_used}"
        try:
            reply = await self._interview.reply(situation, decision, messages, tool_specs(TOOLS))
            actions = actions_in(reply, situation, TOOLS)
        except (CallError, CostCapError):
            return proposal
        choice = next((action for action in actions if isinstance(action, RunTrial)), proposal)
        return choice if History(situation).is_new(choice.changes, choice.base) else proposal


def is_model_trial(situation: Situation) -> bool:
    """Whether the next trial is one of the model's."""
    return (situation.state.budget.trials_used + 1) % 10 in MODEL_TRIALS


def _question(situation: Situation, proposal: RunTrial) -> str:
    proposed = f"{settings_text(proposal.changes)} over {proposal.base}"
    return (
        f"{step_text(situation)}\n\n## Proposal\nA Bayesian sampler proposes to run: {proposed}.\nRun it with "
        "run_trial as it is, change it, or run what you expect to score higher."
    )
