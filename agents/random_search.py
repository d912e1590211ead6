"""Random search, the baseline that other agents must beat with the same budget."""

from ..memory.records import Hypothesis
from .base import Action, Agent, RunTrial, Situation
from .drawing import draw
from .history import History
from .reflecting import dimension_of
from .required import close, required_action

MAX_CHANGES = 6
DRAWS = 500  # if this many draws find nothing new, the space counts as exhausted


class RandomSearch(Agent):
    """Runs the default, then configurations with two to `MAX_CHANGES` random knobs, each drawn from its whole range."""

    def act(self, situation: Situation) -> Action:
        """Required actions first, then a random configuration that has not been tried yet."""
        return required_action(situation) or self._draw(situation)

    def _draw(self, situation: Situation) -> Action:
        history = History(situation)
        if history.trials_used == 0 and history.is_new({}, "default"):
            return RunTrial({}, "default", None)
        generator = self.generator(situation)
        names = list(history.space.knobs)
        for _ in range(DRAWS if names else 0):
            size = min(len(names), int(generator.integers(2, MAX_CHANGES + 1)))
            chosen = sorted(generator.choice(len(names), size=size, replace=False))
            changes = {names[i]: draw(history.space.knobs[names[i]], generator) for i in chosen}
            if history.is_new(changes, "default"):
                dimension = dimension_of(changes, history.space)
                reason = "drawn at random from the whole action space"
                return RunTrial(changes, "default", Hypothesis(dimension=dimension, reason=reason))
        return close(situation)
