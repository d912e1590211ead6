"""The plan of a comparison, and the tasks that follow from it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..agents.registry import ASKING
from ..data.atomic import write_bytes
from ..data.catalogue import Catalogue
from .arms import Arm
from .homes import digest_of, home_of
from .models import ModelChoice
from .task import DIGEST, Task


@dataclass(frozen=True)
class Plan:
    """What is compared, and how. `out` holds the sessions and the report, `home` the datasets."""

    out: Path
    home: Path
    datasets: tuple[str, ...]
    backbones: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: int
    trials: int
    page: str
    train_seconds: float | None = None
    replay: Path | None = None
    device: str = "auto"
    threads: int = 1
    jobs: int = 1
    first_seed: int = 0
    look: bool = True  # whether each session takes its look at the test set
    replay_sha256: str = ""
    model: ModelChoice = ModelChoice()  # of arms that ask a language model and name none

    def tasks(self, cognition: dict[str, Path]) -> list[Task]:
        """One task per seed, dataset, backbone and arm, in this order, so that an interrupted plan is balanced.

        cognition: per backbone, the file with which the homes of carried arms start.
        """
        return [
            self.task(arm, dataset, backbone, seed, cognition.get(backbone) if arm.carried else None)
            for seed in range(self.first_seed, self.first_seed + self.seeds)
            for dataset in self.datasets
            for backbone in self.backbones
            for arm in self.arms
        ]

    def task(self, arm: Arm, dataset: str, backbone: str, seed: int, cognition: Path | None = None) -> Task:
        """The task of one session."""
        page = write_page(self.out, self.page)
        task = Task(
            home="",
            arm=arm.name,
            agent=arm.agent,
            seeding=arm.seeding,
            model=self.model_of(arm),
            with_reflection=arm.with_reflection,
            with_memory=arm.with_memory,
            dataset=dataset,
            dataset_id=self.dataset_id(dataset),
            backbone=backbone,
            seed=seed,
            page=str(page),
            page_sha256=digest_of(page),
            cognition=str(cognition or ""),
            cognition_sha256=digest_of(cognition) if cognition else "",
            replay=str(self.replay or ""),
            replay_sha256=self.replay_sha256,
            device=self.device,
            threads=self.threads,
            look=self.look,
        )
        return self.placed(task)

    def model_of(self, arm: Arm) -> ModelChoice:
        """The language model of an arm; none if its agent asks none."""
        if arm.agent not in ASKING:
            return ModelChoice()
        return self.model.model_copy(update={"name": arm.model}) if arm.model else self.model

    def placed(self, task: Task) -> Task:
        """The task with its key and its home, whose name ends with the digest of the task."""
        key = f"{task.arm}.{task.backbone}.{task.dataset}.{task.seed}"
        return task.model_copy(update={"key": key, "home": str(home_of(self.out, key, task.digest))})

    def dataset_id(self, dataset: str) -> str:
        """The id of a dataset's content; that of a replay table is covered by the table's hash."""
        if self.replay and dataset in self.datasets:
            return ""
        return Catalogue(self.home).manifest(dataset).dataset_id


def write_page(out: Path, text: str) -> Path:
    """A protocol page as a file below `out`, named after its hash."""
    path = out / "pages" / f"{hashlib.sha256(text.encode()).hexdigest()[:DIGEST]}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_bytes(path, text.encode())
    return path
