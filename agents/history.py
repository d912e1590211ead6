"""The trajectory as an agent reads it: the past trials, their bases and their measured effects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.knobs.trial_names import ENSEMBLE, NAMING, TEACHERS
from ..tools.views import NDCG10, KnobValues, TrialRow
from .base import Situation
from .space import Space


class PastTrial(TrialRow):
    """A trial of the trajectory, with its paired NDCG@10 difference to the base in standard errors and relative."""

    @property
    def is_ensemble(self) -> bool:
        """Whether the trial scored the models of other trials together."""
        return ENSEMBLE in self.settings

    @property
    def uses_models(self) -> bool:
        """Whether the trial used the models of other trials, as members of an ensemble or as teachers."""
        return self.is_ensemble or TEACHERS in self.settings

    @property
    def ndcg(self) -> float | None:
        """Validation NDCG@10; None if the trial has no metrics."""
        return self.metrics.get(NDCG10)

    @property
    def base_z(self) -> float | None:
        """The difference to the base in standard errors; None without a comparison."""
        if self.base_delta is None or self.base_delta_se is None:
            return None
        return self.base_delta / self.base_delta_se if self.base_delta_se > 0 else 0.0

    @property
    def relative(self) -> float:
        """The difference to the base, relative to the base's NDCG@10; 0 without a comparison."""
        return self._share(self.base_delta)

    @property
    def relative_se(self) -> float:
        """The standard error of `relative`."""
        return self._share(self.base_delta_se)

    @property
    def relative_bound(self) -> float:
        """Of a stopped trial, the upper bound of `relative`; 0 if it is not known."""
        found = self.stopped
        if found is None or found.at_most is None or found.base_delta_at_most is None:
            return 0.0
        base = found.at_most - found.base_delta_at_most
        return found.base_delta_at_most / base if base > 0 else 0.0

    def _share(self, amount: float | None) -> float:
        if amount is None or self.base_delta is None or self.ndcg is None or self.ndcg <= self.base_delta:
            return 0.0
        return amount / (self.ndcg - self.base_delta)


@dataclass(frozen=True)
class Step:
    """The measured effect of changing a single knob from one value to another."""

    knob: str
    before: Any  # values of this knob; numbers for a numeric knob, so that they can be subtracted
    after: Any
    z: float
    relative: float
    trial: str
    se: float = 0.0  # of `relative`
    kept: bool = False
    stopped: bool = False  # the trial was stopped early: `relative` and `z` are upper bounds, below 0

    @property
    def direction(self) -> Any:
        """1 for up, -1 for down; for a categorical or boolean knob, the new value."""
        if isinstance(self.after, (bool, str)):
            return self.after
        return 1 if self.before is None or self.after > self.before else -1


@dataclass(frozen=True)
class PooledSteps:
    """Several steps pooled: inverse-variance weighted mean of `relative`, its standard error, z, number of steps."""

    mean: float
    se: float
    z: float
    num_steps: int


def pool(steps: Sequence[Step]) -> PooledSteps | None:
    """The measured steps pooled into one measurement; None if no step has a standard error. Bounds are left out."""
    measured = [step for step in steps if step.se > 0 and not step.stopped]
    if not measured:
        return None
    total = sum(step.se**-2 for step in measured)
    mean = sum(step.relative * step.se**-2 for step in measured) / total
    return PooledSteps(mean, total**-0.5, mean * total**0.5, len(measured))


class History:
    """A situation, parsed once for planning.

    from_best: plan from the best trial that was reflected on, although the Program has another incumbent within noise.
    Selection takes the best validation figure, so this is where the session would end now.
    """

    def __init__(self, situation: Situation, *, from_best: bool = False) -> None:
        self.situation = situation
        self.space = Space(situation.brief.backbone, situation.brief.knobs)
        self.trials = [PastTrial(**dict(row)) for row in situation.trajectory.trials if not row.machine_fault]
        self._by_handle = {trial.trial: trial for trial in self.trials}
        self.incumbent = self._by_handle.get(situation.state.incumbent or "")
        if from_best and situation.state.with_memory and situation.state.with_reflection:
            self.incumbent = max([*self.finished], key=lambda trial: trial.ndcg or 0.0, default=self.incumbent)
        self.trials_used = situation.state.budget.trials_used
        self.budget = situation.state.budget.trials_max
        self.trials_left = self.budget - self.trials_used
        self._keys = {trial.trial: self.space.key(trial.settings) for trial in self.trials}
        self._known_keys = set(self._keys.values()) | set(self._swept_keys())
        refused = [refusal for refusal in situation.refused if not refusal.swept]
        self._known_keys |= {self.space.key(self.settings(r.base) | r.changes) for r in refused}

    def _swept_keys(self) -> Iterator[str]:
        for trial in self.trials:
            over = self.settings(trial.base)
            yield from (self.space.key(over | row.settings) for row in trial.swept)

    def settings(self, base: str) -> KnobValues:
        """The values in which `base` differs from the default; empty for a trial that the trajectory does not list."""
        if base == "incumbent":
            return self.incumbent.settings if self.incumbent else {}
        return self._by_handle[base].settings if base in self._by_handle else {}

    @property
    def current(self) -> KnobValues:
        """All knob values of the incumbent, or of the default while there is no incumbent."""
        return self.space.complete(self.settings("incumbent"))

    def key_of(self, trial: PastTrial) -> str:
        """The key of a trial's configuration."""
        return self._keys[trial.trial]

    def is_new(self, changes: KnobValues, base: str) -> bool:
        """Whether `changes` over `base` are valid, not yet tried, and not refused since a trial last ran."""
        over = self.settings(base)
        return self.space.allows(changes, over) and self.space.key(over | changes) not in self._known_keys

    @property
    def finished(self) -> list[PastTrial]:
        """Trials with metrics, oldest first."""
        return [trial for trial in self.trials if trial.status == "finished" and trial.ndcg is not None]

    @property
    def best(self) -> PastTrial | None:
        """The trial with the best validation NDCG@10; the earliest one on a tie."""
        return max(self.finished, key=lambda trial: trial.ndcg or 0.0, default=None)

    def steps(self, knob: str | None = None) -> list[Step]:
        """The measured single-knob changes, oldest first; only those of `knob` if it is given.

        A stopped trial whose bound is below its base counts with this bound: it lost at least as much. A change that
        names trials is no step, because its gain depends on these and not on the value of a knob.
        """
        found = []
        for trial in self.trials:
            z = trial.base_z if trial.stopped is None else trial.stopped.base_z_at_most
            if z is None or len(trial.changes) != 1:
                continue
            name, after = next(iter(trial.changes.items()))
            if knob in (None, name) and name not in NAMING:
                before = self.space.complete(self.settings(trial.base)).get(name)
                kept, stopped = trial.verdict == "keep", trial.stopped is not None
                relative = trial.relative_bound if stopped else trial.relative
                found.append(Step(name, before, after, z, relative, trial.trial, trial.relative_se, kept, stopped))
        return found

    def reflected_steps(self, knob: str | None = None) -> list[Step]:
        """The steps that were reflected on, or that need no reflection because they re-scored within noise.

        Planning uses only these, so without reflections it uses no measured step.
        """
        state = self.situation.state
        reflected = {trial.trial for trial in self.trials if trial.reflected}
        if state.with_reflection:
            reflected |= {trial.trial for trial in self.trials if trial.trial != state.pending_reflection}
        return [step for step in self.steps(knob) if step.trial in reflected]

    def has_tried(self, changes: KnobValues) -> bool:
        """Whether a trial has made exactly these changes, over any base."""
        return any(trial.changes == changes for trial in self.trials)

    def was_changed(self, knob: str) -> bool:
        """Whether any trial has changed this knob."""
        return any(knob in trial.changes for trial in self.trials)
