"""Random search: the yardstick that an engineer has to beat at the same budget."""

from ..memory.records import Hypothesis
from .base import Action, Agent, RunTrial, Situation
from .drawing import draw
from .duties import close, duty
from .history import History
from .reflecting import dimension_of

MAX_CHANGES = 6
DRAWS = 500  # a space so small that this many draws find nothing new is taken to be exhausted


class RandomSearch(Agent):
    """The plain default, then two to six knobs over it drawn at random, each from its whole range on its own scale."""

    def act(self, situation: Situation) -> Action:
        """Duties first, then a random configuration that was not tried before."""
        return duty(situation) or self._draw(situation)

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
