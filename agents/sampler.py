"""Base classes of the samplers: agents that know configurations and scores, and nothing about recommenders.

A sampler keeps no state: in every step it rebuilds what it needs from the trajectory. It runs each trial over the
default with all its settings, so that the effect of every trial is defined. It writes no reflections. Its first trials
come from its seeding (`seeding.py`) and are observations like any other. A configuration that the engine refuses, that
was tried, or that the server refused costs no trial: the sampler proposes another at once.

In a session without memory the trajectory shows the last trial only, so that a sampler has one observation.
"""

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np

from ..memory.records import Hypothesis
from ..tools.views import KnobValues
from .base import Action, Agent, RunTrial, Situation
from .drawing import draw
from .history import History, PastTrial
from .reflecting import dimension_of
from .required import end, required_action
from .seeding import Seeding, seeds
from .space import Space

MAX_REFUSED = 30
"""Refusals by the server in a row after which a sampler ends the session; below `loop.MAX_REFUSALS`."""
FREE_REFUSALS = 10
"""Refusals in a row after which proposals are moved towards the default, because heuristics refuse their region."""
RANDOM_DRAWS = 500
"""If this many random configurations contain nothing new, the space counts as exhausted."""
MAX_CHANGES = 6


class Sampler(Agent):
    """Proposes the first new candidate: those of its seeding first, then its own."""

    reflects: ClassVar[bool] = False
    method: ClassVar[str]
    """What the candidates come from, for the hypothesis."""

    def __init__(self, seed: int = 0, seeding: Seeding = "default") -> None:
        super().__init__(seed)
        self.seeding = seeding

    @abstractmethod
    def candidates(self, history: History, generator: np.random.Generator) -> Iterator[KnobValues]:
        """Settings over the default, best first; they may be invalid, tried or inert in part."""

    def act(self, situation: Situation) -> Action:
        """Required actions first, then the first candidate that is valid and new; ends the session without one."""
        return required_action(situation) or self._plan(situation)

    def _plan(self, situation: Situation) -> Action:
        if len(situation.refused) >= MAX_REFUSED:
            return end(situation)
        history = History(situation)
        given = ((settings, f"{self.seeding} seeding: {reason}") for settings, reason in seeds(history, self.seeding))
        own = ((settings, self.method) for settings in self.candidates(history, self.generator(situation)))
        for settings, reason in itertools.chain(given, own):
            changes = history.space.effective_changes(settings)
            if changes is not None and history.is_new(changes, "default"):
                dimension = dimension_of(changes, history.space)
                return RunTrial(changes, "default", Hypothesis(dimension=dimension, reason=reason))
        return end(situation)

    def generator(self, situation: Situation) -> np.random.Generator:
        """The random generator of this step, seeded by (seed, number of trials, number of refusals since)."""
        return np.random.default_rng([self.seed, situation.state.budget.trials_used, len(situation.refused)])


class DrawingSampler(Sampler):
    """A sampler whose candidates are drawn; if its draws hold nothing new, random ones follow."""

    @abstractmethod
    def draws(self, history: History, generator: np.random.Generator) -> Iterator[KnobValues]:
        """Settings over the default; finitely many."""

    def candidates(self, history: History, generator: np.random.Generator) -> Iterator[KnobValues]:
        """The draws, moved towards the default after `FREE_REFUSALS` refusals; then random configurations."""
        if not history.space.knobs:
            return
        kept = 1 - max(0, len(history.situation.refused) - FREE_REFUSALS) / (MAX_REFUSED - FREE_REFUSALS)
        for settings in itertools.chain(self.draws(history, generator), random_draws(history, generator)):
            yield settings if kept == 1 else part_of(settings, kept, history, generator)


def random_draws(history: History, generator: np.random.Generator) -> Iterator[KnobValues]:
    """`RANDOM_DRAWS` configurations with up to `MAX_CHANGES` random knobs, each from its whole range."""
    names = list(history.space.knobs)
    for _ in range(RANDOM_DRAWS):
        size = min(len(names), int(generator.integers(2, MAX_CHANGES + 1)))
        chosen = sorted(generator.choice(len(names), size=size, replace=False))
        yield {names[i]: draw(history.space.knobs[names[i]], generator) for i in chosen}


def part_of(settings: KnobValues, share: float, history: History, generator: np.random.Generator) -> KnobValues:
    """A random `share` of the settings that differ from the defaults, at least one."""
    changed = [name for name, value in settings.items() if value != history.space.defaults[name]]
    chosen = generator.permutation(len(changed))[: max(1, round(share * len(changed)))]
    return {changed[i]: settings[changed[i]] for i in sorted(chosen)}


def repaired(settings: KnobValues, space: Space, generator: np.random.Generator) -> KnobValues:
    """The settings, with knobs put back to their defaults one by one, in random order, until the engine accepts them.

    Knobs that turn out not to be at fault keep their values.
    """
    if space.config(settings) is not None:
        return settings
    reverted: list[str] = []
    names = [str(name) for name in generator.permutation(sorted(settings))]
    for name in names:
        reverted.append(name)
        if space.config({n: v for n, v in settings.items() if n not in reverted}) is not None:
            break
    for name in reverted[:-1]:  # give back what was not at fault
        without = [other for other in reverted if other != name]
        if space.config({n: v for n, v in settings.items() if n not in without}) is not None:
            reverted = without
    return {name: value for name, value in settings.items() if name not in reverted}


def score_of_crash(history: History) -> float:
    """The score that a crashed trial counts with: the worst of the session, or 0 if no trial has finished.

    Samplers must learn from a crash that its region is bad, and ignoring it would let them return there. The worst
    measured score says so without a number far from all others, which would distort a model's scale.
    """
    return min((trial.ndcg or 0.0 for trial in history.finished), default=0.0)


class Observed(NamedTuple):
    """A trial as a sampler is told about it; `pruned` = (epoch, NDCG@10 then), if it was stopped early.

    The score of a stopped trial is its upper bound: the best that its configuration can be, for methods that know
    values only.
    """

    settings: KnobValues
    score: float
    pruned: tuple[int, float] | None = None


def lies(history: History) -> list[Observed]:
    """Settings of each running trial with the mean score of the finished ones: a constant liar.

    Without it, a sampler that is asked while trials run would propose nearly the same again (Ginsbourger, Le Riche and
    Carraro 2010, "Kriging is well-suited to parallelize optimization", Section 4.2). The mean says that the place is
    known, and neither that it is good nor that it is bad. None while no trial has finished.
    """
    scores = [trial.ndcg or 0.0 for trial in history.finished]
    running = [trial for trial in history.trials if trial.status == "running" and not trial.uses_models]
    return [Observed(trial.settings, sum(scores) / len(scores)) for trial in running] if scores else []


def observations(history: History) -> list[Observed]:
    """Each finished, stopped or crashed trial, in the order in which they ended.

    A cancelled trial says nothing, and one that used models of others says nothing about the knobs that a sampler
    searches.
    """
    crash = score_of_crash(history)
    ended = [t for t in history.trials if t.status in ("finished", "stopped", "crashed") and not t.uses_models]
    ended.sort(key=lambda trial: trial.ended or trial.number)
    return [_observed(trial, crash) for trial in ended]


def _observed(trial: PastTrial, crash: float) -> Observed:
    if trial.stopped is not None:
        bound = crash if trial.stopped.at_most is None else trial.stopped.at_most
        return Observed(trial.settings, bound, (trial.stopped.epoch, trial.stopped.reached))
    return Observed(trial.settings, crash if trial.ndcg is None else trial.ndcg)
