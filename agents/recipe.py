"""A scripted agent: it runs the configurations of a file in their order, reflects on each, and searches nothing.

The file is TOML. Its steps are listed per backbone, or under the name of a dataset for this dataset only:

    [[sasrec]]
    changes.lr = 0.001
    changes.dropout = 0.5

    [[sasrec]]
    sweep.transition_weight = [2.0, 4.0, 8.0]

    [[beauty.sasrec]]
    changes.lr = 0.002

A step is a trial of `changes` over the default, or a sweep of scoring knobs over the best trial so far, other than the
plain default: every combination of the listed values, or a list of settings. `over = "best"` or `over = "default"`
says otherwise. A trial with `teachers = 3` learns from the best trained models so far: at most three, of those that
reach 90 % of the best one's NDCG@10.
"""

import difflib
import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.errors import ConfigError
from ..data.prepared import RANDOM_SUFFIX
from ..models.knobs.declaration import BACKBONES
from ..models.knobs.trial_names import NAMING, TEACHERS, joined
from ..tools.views import KnobValues
from .base import Action, Agent, RunTrial, Situation, Sweep
from .ensembles import best_models
from .history import History, PastTrial
from .required import end, required_action, wait

GIVEN = "the configuration is given, not searched for"
BASES = ("default", "best")
ENSEMBLE = "ensemble"
LISTS = (*BACKBONES, ENSEMBLE)
"""The lists of a file, and of a dataset in it."""


@dataclass(frozen=True)
class Step:
    """One trial of a recipe: `changes` over a base, or, if `settings` are given, a sweep of these."""

    changes: KnobValues
    settings: tuple[KnobValues, ...] = ()
    over: str = "default"
    teachers: int = 0

    @property
    def is_over_earlier_trials(self) -> bool:
        """Whether the step depends on how earlier trials end."""
        return self.over == "best" or self.teachers > 0

    def action(self, history: History) -> RunTrial | Sweep:
        """The step as an action.

        The best trial is one with settings of its own, if there is one: that the plain default was measured as well,
        for comparison, does not change what the recipe runs.
        """
        own = [trial for trial in history.finished if trial.settings] or history.finished
        best = max(own, key=lambda trial: trial.ndcg or 0.0, default=None)
        base = best.trial if best and self.over == "best" else "default"
        if self.settings:
            return Sweep(self.settings, base)
        taught = {TEACHERS: joined(best_models(history, self.teachers))} if self.teachers else {}
        if taught and not taught[TEACHERS]:
            raise ConfigError("a step with teachers needs a trained model; write a step without teachers before it")
        return RunTrial({**self.changes, **taught}, base, override=GIVEN)


DEFAULT = Step({})
"""The plain default."""


@dataclass(frozen=True)
class Recipes:
    """The steps of a file by the name of their list, and those of single datasets by dataset and name."""

    general: Mapping[str, Sequence[Step]]
    by_dataset: Mapping[str, Mapping[str, Sequence[Step]]]

    def steps(self, dataset: str, name: str) -> tuple[Step, ...]:
        """The steps of a list, e.g. of a backbone: those of the dataset if it has its own, else the general ones.

        A dataset whose name says that its ties are in random order has those of the plain one, as in a record.
        """
        of_dataset = (self.by_dataset.get(one, {}) for one in (dataset, dataset.removesuffix(RANDOM_SUFFIX)))
        return tuple(next((lists[name] for lists in (*of_dataset, self.general) if name in lists), ()))


class RecipeAgent(Agent):
    """Runs the steps in their order. A step that the server refuses ends the run with the server's reason.

    A training that crashed is run once more: a power cut, or a machine that killed its worker, leaves a crash.
    """

    def __init__(self, recipes: Recipes, seed: int = 0) -> None:
        super().__init__(seed)
        self._recipes = recipes

    def act(self, situation: Situation) -> Action:
        """A step that has crashed once, else the next one; the end of the session after the last one."""
        return required_action(situation) or self._next(situation)

    def _next(self, situation: Situation) -> Action:
        if not situation.state.with_memory:
            raise ConfigError(
                "a recipe counts the trials of its session, and this session without memory hides them; open another "
                "one with --new, without --without-memory"
            )
        history = History(situation)
        steps = self._recipes.steps(situation.brief.dataset, situation.brief.backbone)
        number, crashed = next_step(history.trials)
        if situation.refused and situation.running:  # it may be admitted once a running trial has ended
            return wait(situation)
        if situation.refused:
            raise ConfigError(f"step {number + 1} of the recipe was refused: {situation.refused[-1].reason}")
        if number >= len(steps):
            return end(situation)
        if crashed:  # as it was: its teachers may be others by now
            return RunTrial(crashed.changes, crashed.base, override=GIVEN)
        step = steps[number]
        return wait(situation) if step.is_over_earlier_trials and situation.running else step.action(history)


def next_step(trials: Sequence[PastTrial]) -> tuple[int, PastTrial | None]:
    """The number of the step to run, counted from 0, and the crashed trial that is run again as this step.

    Without a crashed trial to run again, it is the next step, and None. Sweeps are not run again. A trial with the
    changes and the base of a crashed one is its second attempt; every other trial begins a step.
    """
    begun, crashed = 0, dict[str, tuple[int, PastTrial]]()
    for trial in trials:
        what = repr((trial.base, sorted(trial.changes.items())))
        if what in crashed:
            del crashed[what]
            continue
        if trial.status == "crashed" and not trial.swept:
            crashed[what] = begun, trial
        begun += 1
    return next(iter(crashed.values()), (begun, None))


def read_recipes(file: Path) -> Recipes:
    """The recipes of a TOML file. Raises ConfigError for a file that cannot be read or has another form."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipes={str(file)!r} cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:  # of TOML, and of text that is not UTF-8
        raise ConfigError(f"recipes={str(file)!r} is not TOML: {error}") from None
    datasets = {name: value for name, value in content.items() if name not in LISTS and isinstance(value, dict)}
    general = _lists(file, "", {name: value for name, value in content.items() if name not in datasets})
    return Recipes(general, {name: _lists(file, f"{name}.", lists) for name, lists in datasets.items()})


def _lists(file: Path, prefix: str, given: Mapping[str, Any]) -> dict[str, tuple[Step, ...]]:
    for name in given:
        if name not in LISTS:
            same_place, table = _similar(name), _similar(prefix.removesuffix("."))  # [sasrek] instead of [[sasrec]]
            meant = prefix + same_place if same_place else table
            known = f"the lists are {', '.join(LISTS)}, alone or after the name of a dataset"
            hint = f"did you mean [[{meant}]]?" if meant else known
            raise ConfigError(f"{file.name}: {prefix}{name} is no list of steps; {hint}")
    return {name: _steps(file, prefix + name, value) for name, value in given.items()}


def _similar(name: str) -> str:
    return next(iter(difflib.get_close_matches(name.lower(), LISTS, n=1)), "")


def _steps(file: Path, name: str, given: Any) -> tuple[Step, ...]:
    if not isinstance(given, list):
        raise ConfigError(f"{file.name}: {name} is no list of steps; write each step under [[{name}]]")
    return tuple(_step(f"{file.name}: step {number} of {name}", step) for number, step in enumerate(given, 1))


def _step(where: str, given: Any) -> Step:
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is {given!r}; write it as changes.KNOB = VALUE, or as sweep.KNOB = [VALUE, ...]")
    fields = dict(given)
    over, changes, sweep, teachers = (fields.pop(name, None) for name in ("over", "changes", "sweep", "teachers"))
    if fields or (changes is None) == (sweep is None):
        found = ", ".join(given) or "nothing"
        raise ConfigError(f"{where} has {found}; give either changes or sweep, and over where it is needed")
    over = over or ("default" if sweep is None else "best")
    if over not in BASES:
        raise ConfigError(f"{where}: over={over!r} is not known; choose one of {', '.join(BASES)}")
    if sweep is None:
        if not isinstance(changes, dict):
            raise ConfigError(f"{where}: changes={changes!r} names no knob; write changes.KNOB = VALUE")
        _check_values(where, changes)
        if teachers is not None and TEACHERS in changes:
            raise ConfigError(f"{where} has teachers and changes.{TEACHERS}; give one of them")
        return Step(dict(changes), over=over, teachers=_num_teachers(where, teachers))
    if teachers is not None:
        raise ConfigError(f"{where}: a sweep trains nothing, so it has no teachers; give them to a step of changes")
    if not isinstance(sweep, dict | list):
        raise ConfigError(f"{where}: sweep={sweep!r} names no knob; write sweep.KNOB = [VALUE, ...]")
    settings = _combinations(sweep) if isinstance(sweep, dict) else tuple(sweep)
    if not settings or not all(isinstance(setting, dict) for setting in settings):
        raise ConfigError(f"{where}: sweep has no settings; give lists of values, or a list of settings")
    for setting in settings:
        _check_values(where, setting)
    return Step({}, settings, over)


def _num_teachers(where: str, given: Any) -> int:
    """How many models a step learns from; 0 if it says nothing."""
    naming = NAMING[TEACHERS]
    if given is None:
        return 0
    if isinstance(given, bool) or not isinstance(given, int) or not naming.fewest <= given <= naming.most:
        raise ConfigError(f"{where}: teachers={given!r} is not from {naming.fewest} to {naming.most}")
    return given


def _check_values(where: str, setting: Mapping[str, Any]) -> None:
    """Refuse what TOML can write and no knob can be; infinities and NaN would not even reach the server."""
    for name, value in setting.items():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, bool | int | float | str) or (isinstance(one, float) and not math.isfinite(one)):
                raise ConfigError(f"{where}: {name}={one} is no value of a knob; write a finite number, text, or true")


def _combinations(values: Mapping[str, Any]) -> tuple[KnobValues, ...]:
    """Every combination of the listed values of knobs; a single value counts as a list of one."""
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*lists))
