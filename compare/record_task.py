"""The task of a record: all sessions on one dataset, in one home, as the process that runs them receives it."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from ..agents.recipe import DEFAULT, ENSEMBLE, Recipes, Step, read_recipes
from ..data.errors import ConfigError
from ..models.knobs.declaration import Backbone
from ..models.knobs.trial_names import MIN_MEMBERS
from .task import DIGEST, HOUSEKEEPING, Job

PATHS = {*HOUSEKEEPING, "page", "recipes"}


@dataclass(frozen=True)
class Part:
    """One session of a record: of a backbone, or of the ensemble, which is opened under the first backbone."""

    name: str
    backbone: str
    steps: tuple[Step, ...]

    @property
    def is_ensemble(self) -> bool:
        """Whether its trials score trained models of the other sessions together."""
        return self.name == ENSEMBLE

    def before_students(self) -> "Part":
        """The session with the steps before its first student, which need no models of other sessions."""
        first = next((number for number, step in enumerate(self.steps) if step.teachers), len(self.steps))
        return replace(self, steps=self.steps[:first])


class RecordTask(Job):
    """Sessions of one dataset: one per backbone, and one for their ensemble."""

    dataset_id: str
    listed_as: str  # the name of the dataset in the recipes
    backbones: tuple[Backbone, ...]
    with_default: bool = False
    ensemble: bool = False
    repetitions: int
    parallel: int = 1  # trials of a session at a time, repetitions included
    jobs: int = 1  # datasets at a time; as `parallel`, it changes seconds only
    seed: int = 0
    device: str = "auto"
    page: str  # path of the protocol page
    page_sha256: str
    recipes: str  # path of the file of recipes
    recipes_sha256: str

    @property
    def digest(self) -> str:
        """A hash of what determines the sessions; paths do not, the contents of their files do."""
        fields = self.model_dump(exclude={*PATHS, "parallel", "jobs"})
        return hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()[:DIGEST]

    def parts(self) -> tuple[Part, ...]:
        """The sessions in the order in which they are opened. Raises ConfigError for recipes that lack a backbone."""
        recipes = read_recipes(Path(self.recipes))
        return parts_of(self.listed_as, self.backbones, recipes, self.with_default, self.ensemble)


def parts_of(
    dataset: str, backbones: tuple[Backbone, ...], recipes: Recipes, with_default: bool, ensemble: bool
) -> tuple[Part, ...]:
    """The sessions of a record on `dataset`. Raises ConfigError for a backbone without a recipe, for an ensemble of
    fewer than two configurations, and for students that no model can teach."""
    parts = []
    for backbone in backbones:
        steps = recipes.steps(dataset, backbone)
        if not any(step.changes for step in steps):
            raise ConfigError(f"the recipes have no configuration of {backbone} for {dataset}; add one")
        parts.append(Part(backbone, backbone, (DEFAULT, *steps) if with_default else steps))
    if any(step.teachers for part in parts for step in part.steps) and not any(
        step.changes for part in parts for step in part.before_students().steps
    ):
        raise ConfigError(f"the recipes for {dataset} begin with students; give a configuration before the first one")
    if ensemble and sum(bool(step.changes) for part in parts for step in part.steps) < MIN_MEMBERS:
        raise ConfigError(f"an ensemble needs {MIN_MEMBERS} trained models; give a second backbone or configuration")
    if ensemble:
        parts.append(Part(ENSEMBLE, backbones[0], recipes.steps(dataset, ENSEMBLE)))
    return tuple(parts)


def num_steps(parts: tuple[Part, ...], repetitions: int) -> int:
    """The trials of all sessions with their repetitions, for a progress bar."""
    return sum(len(part.steps) + (1 if part.is_ensemble else repetitions) for part in parts)
