"""The trajectory as an agent reads it: what was tried, over what, and what it measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..tools.views import NDCG10, KnobValues, TrialRow
from .base import Situation
from .space import Space


class Tried(TrialRow):
    """One trial of the trajectory, and its paired difference of NDCG@10 to the base in errors and as a share."""

    @property
    def ndcg(self) -> float | None:
        """Validation NDCG@10; None where the trial has none."""
        return self.metrics.get(NDCG10)

    @property
    def base_z(self) -> float | None:
        """The base difference in standard errors; None where nothing was compared."""
        if self.base_delta is None or self.base_delta_se is None:
            return None
        return self.base_delta / self.base_delta_se if self.base_delta_se > 0 else 0.0

    @property
    def relative(self) -> float:
        """The base difference as a share of the base's NDCG@10; 0 where nothing was compared."""
        return self._share(self.base_delta)

    @property
    def relative_se(self) -> float:
        """The standard error of `relative`."""
        return self._share(self.base_delta_se)

    def _share(self, amount: float | None) -> float:
        if amount is None or self.base_delta is None or self.ndcg is None or self.ndcg <= self.base_delta:
            return 0.0
        return amount / (self.ndcg - self.base_delta)


@dataclass(frozen=True)
class Step:
    """What turning one knob alone from one value to another has measured."""

    knob: str
    before: Any  # values of this knob: numbers for a number, so that they can be subtracted
    after: Any
    z: float
    relative: float
    trial: str
    se: float = 0.0  # of `relative`
    kept: bool = False

    @property
    def direction(self) -> Any:
        """1 upwards, -1 downwards; for a choice the value itself, there is no order."""
        if isinstance(self.after, (bool, str)):
            return self.after
        return 1 if self.before is None or self.after > self.before else -1


@dataclass(frozen=True)
class Pooled:
    """What several steps have measured together: inverse-variance mean, its error, their ratio, how many."""

    mean: float
    se: float
    z: float
    num_steps: int


def pool(steps: Sequence[Step]) -> Pooled | None:
    """The steps as one measurement; None where none has an error."""
    sure = [step for step in steps if step.se > 0]
    if not sure:
        return None
    total = sum(step.se**-2 for step in sure)
    mean = sum(step.relative * step.se**-2 for step in sure) / total
    return Pooled(mean, total**-0.5, mean * total**0.5, len(sure))


class History:
    """A situation, read once for planning."""

    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self.space = Space(situation.brief.backbone, situation.brief.knobs)
        self.trials = [Tried(**dict(row)) for row in situation.trajectory.trials if not row.machine_fault]
        self._by_handle = {trial.trial: trial for trial in self.trials}
        self.incumbent = self._by_handle.get(situation.state.incumbent or "")
        self.trials_used = situation.state.budget.trials_used
        self.budget = situation.state.budget.trials_max
        self.trials_left = self.budget - self.trials_used
        self._keys = {trial.trial: self.space.key(trial.settings) for trial in self.trials}
        self.known = set(self._keys.values())
        self.known |= {self.space.key(self.settings(r.base) | r.changes) for r in situation.refused}

    def settings(self, base: str) -> KnobValues:
        """The knobs that differ from the default in `base`; empty for a trial that is not remembered."""
        if base == "incumbent":
            return self.incumbent.settings if self.incumbent else {}
        return self._by_handle[base].settings if base in self._by_handle else {}

    @property
    def current(self) -> KnobValues:
        """Every knob's value in the incumbent, or in the default before there is one."""
        return self.space.complete(self.settings("incumbent"))

    def key_of(self, trial: Tried) -> str:
        """The key of a trial's configuration."""
        return self._keys[trial.trial]

    def is_new(self, changes: KnobValues, base: str) -> bool:
        """Whether this is an open, valid configuration that was neither tried nor refused in this step."""
        over = self.settings(base)
        return self.space.allows(changes, over) and self.space.key(over | changes) not in self.known

    @property
    def finished(self) -> list[Tried]:
        """Trials with metrics, oldest first."""
        return [trial for trial in self.trials if trial.status == "finished" and trial.ndcg is not None]

    @property
    def best(self) -> Tried | None:
        """The best validation NDCG@10, the earlier one of equals."""
        return max(self.finished, key=lambda trial: trial.ndcg or 0.0, default=None)

    def steps(self, knob: str | None = None) -> list[Step]:
        """Every measured change of a single knob, oldest first; of one knob if it is named."""
        found = []
        for trial in self.finished:
            z = trial.base_z
            if z is None or len(trial.changes) != 1:
                continue
            name, after = next(iter(trial.changes.items()))
            if knob in (None, name):
                before = self.space.complete(self.settings(trial.base)).get(name)
                kept = trial.verdict == "keep"
                found.append(Step(name, before, after, z, trial.relative, trial.trial, trial.relative_se, kept))
        return found

    def lessons(self, knob: str | None = None) -> list[Step]:
        """The steps that were reflected on: only these teach what to do next, so without reflections none does."""
        reflected = {trial.trial for trial in self.trials if trial.reflected}
        return [step for step in self.steps(knob) if step.trial in reflected]

    def tried_change(self, changes: KnobValues) -> bool:
        """Whether a trial made just this change, over whatever base."""
        return any(trial.changes == changes for trial in self.trials)

    def touched(self, knob: str) -> bool:
        """Whether any trial changed this knob."""
        return any(knob in trial.changes for trial in self.trials)
