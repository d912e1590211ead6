"""When the engineer sweeps the scoring knobs, and over which settings. Pure functions.

Score priors are counted from the training data, and their best weights depend on the model that they are added to. The
engineer therefore leaves them alone until its model stands, and then tries many settings at once: a sweep re-scores one
trained model and takes seconds. When the model has changed since, it sweeps again.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, product

from ..memory.records import Hypothesis
from ..models.config import SCORING_KNOBS
from ..models.knobs.declaration import Value
from ..tools.views import KnobValues
from .base import Sweep
from .drawing import choices_of
from .history import History, PastTrial
from .moves import neighbour, rungs
from .reflecting import NOTICEABLE_Z

REASON = "the best weights of the score priors depend on the model, and a sweep of a trained model takes seconds"

MIN_SETTINGS = 4
"""Fewer new settings than this are not worth a trial of the budget."""
TRIALS_BETWEEN = 5
"""A changed model is swept again after this many trials: each keep of a training knob shifts the weights a little."""
TRIALS_AT_END = 2
"""With at most this many trials left, a model that has never been swept comes first."""
WEIGHTS = ("transition_weight", "cooccurrence_weight", "popularity_weight")
FIRST_WEIGHTS = ((1.0, 2.0, 4.0, 8.0), (0.0, 1.0, 2.0, 4.0), (0.0, 0.5))
"""Weights of transitions, co-occurrences and popularity in the first sweep, in every combination."""
WIDER: KnobValues = {
    "transition_window": 3, "transition_normalisation": "sqrt", "transition_recent": 3, "transition_recency": 0.5,
}  # fmt: skip
"""Transitions from the last three events, within three steps: a second shape of the transition prior."""


def is_scoring(changes: Iterable[str]) -> bool:
    """Whether all changed knobs are scoring knobs, so that the trial is re-scored and not trained."""
    return all(name in SCORING_KNOBS for name in changes)


def model_of(trial: PastTrial) -> KnobValues:
    """The settings of a trial that need training: trials with equal ones share a trained model."""
    return {name: value for name, value in trial.settings.items() if name not in SCORING_KNOBS}


def is_due(history: History) -> bool:
    """Whether the incumbent's model should be swept now: it is new, and enough trials have passed or few are left."""
    if history.incumbent is None:
        return False
    swept = [trial for trial in history.finished if trial.swept]
    if any(model_of(trial) == model_of(history.incumbent) for trial in swept):
        return False
    since = len(history.trials) - 1 - max((history.trials.index(trial) for trial in swept), default=-1)
    return not swept or since >= TRIALS_BETWEEN or history.trials_left <= TRIALS_AT_END


def planned_sweep(history: History) -> Sweep | None:
    """A sweep over the incumbent, or else over the best model that is as good within noise; None if nothing is new."""
    most = history.situation.brief.max_sweep
    if most < MIN_SETTINGS or any(refusal.swept for refusal in history.situation.refused):
        return None
    for base in _bases(history):
        if settings := sweep_settings(history, base, most):
            return Sweep(settings, base.trial, Hypothesis(dimension="scoring", direction="better", reason=REASON))
    return None


def _bases(history: History) -> Iterator[PastTrial]:
    """The incumbent; then trials whose own models were never swept and were not worse than their incumbent."""
    if history.incumbent is None:
        return
    yield history.incumbent
    swept = [model_of(trial) for trial in history.finished if trial.swept]
    tied = [t for t in history.finished if t.z is not None and t.z > -NOTICEABLE_Z and model_of(t) not in swept]
    yield from sorted(tied, key=lambda trial: -(trial.ndcg or 0.0))


def sweep_settings(history: History, base: PastTrial, most: int) -> tuple[KnobValues, ...]:
    """Up to `most` new settings of scoring knobs over `base`, the most promising first; () if there are few."""
    scored = {name: value for name, value in base.settings.items() if name in SCORING_KNOBS}
    around = list(_around(scored, history))
    candidates = [*around, *_first(history)] if scored else [*_first(history), *around]
    before = history.space.complete(base.settings)
    chosen: dict[str, KnobValues] = {}
    for setting in candidates:
        fitted = {name: value for name, value in setting.items() if before[name] != value}
        if fitted and history.is_new(fitted, base.trial):
            chosen.setdefault(history.space.key(base.settings | fitted), fitted)
    return tuple(chosen.values())[:most] if len(chosen) >= MIN_SETTINGS else ()


def _first(history: History) -> Iterator[KnobValues]:
    """All combinations of the usual weights, and the wider transitions over the strongest of them."""
    offered = [name for name in WEIGHTS if name in history.space.knobs]
    values = [_offered(name, usual, history) for name, usual in zip(WEIGHTS, FIRST_WEIGHTS, strict=True)]
    grid = [values[WEIGHTS.index(name)] for name in offered]
    plain = [dict(zip(offered, weights, strict=True)) for weights in product(*grid)]
    wider = {name: value for name, wanted in WIDER.items() if (value := _nearest(name, wanted, history)) is not None}
    both = [setting for pair in ((s, s | wider) for s in plain) for setting in pair] if wider else plain
    yield from sorted(both, key=_unusual)


def _unusual(setting: KnobValues) -> float:
    """How far the weights are from the usual ones, 4 and 2; settings with the usual weights come first."""
    distance = abs(float(setting.get("transition_weight", 4.0)) - 4.0) / 4
    return distance + abs(float(setting.get("cooccurrence_weight", 2.0)) - 2.0) / 2


def _around(scored: KnobValues, history: History) -> Iterator[KnobValues]:
    """Neighbours of the scoring settings `scored`: each knob one rung up or down, each other choice, and pairs."""
    current, names = history.space.complete(scored), [name for name in history.space.knobs if name in SCORING_KNOBS]
    steps = [step for name in names for step in _steps(name, current[name], history)]
    weights = [step for step in steps if next(iter(step)) in WEIGHTS]
    pairs = [a | b for a, b in combinations(weights, 2) if a.keys() != b.keys()]
    used = [step for step in steps if next(iter(step)) in scored and step not in weights]
    rest = [step for step in steps if step not in weights and step not in used]
    yield from (*weights, *used, *pairs, *rest)


def _steps(name: str, current: Value, history: History) -> list[KnobValues]:
    knob = history.space.knobs[name]
    if choices_of(knob):
        return [{name: choice} for choice in choices_of(knob) if choice != current]
    assert not isinstance(current, str)  # only choices are text
    found = (neighbour(name, current, direction, history.space) for direction in (1, -1))
    return [{name: value} for value in found if value is not None]


def _offered(name: str, usual: Sequence[float], history: History) -> list[int | float]:
    """The usual values that the session offers; if its levels differ from them, all of its levels."""
    if name not in history.space.knobs:
        return []
    if history.space.knobs[name].levels:
        return rungs(name, history.space)
    return [value for value in usual if history.space.offers(name, value)]


def _nearest(name: str, wanted: object, history: History) -> object | None:
    """`wanted`, or for a knob with levels the highest level up to it; None if the session offers neither."""
    knob = history.space.knobs.get(name)
    if knob is None:
        return None
    if history.space.offers(name, wanted):
        return wanted
    below = [level for level in knob.levels if isinstance(wanted, int | float) and level <= wanted]
    return max(below, default=None)
