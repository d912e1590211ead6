"""The task of one session of a comparison, as the process that runs it receives it."""

import hashlib

from pydantic import BaseModel, ConfigDict

from ..agents.seeding import Seeding
from .models import ModelChoice

DIGEST = 8  # hex digits
HOUSEKEEPING = {"home", "key"}
"""Fields that say where a session runs, not what it is."""


class Job(BaseModel):
    """What a process of its own does in a home of its own, on one dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: str
    key: str = ""
    dataset: str
    threads: int = 1

    @property
    def linked(self) -> str:
        """The dataset of the base home that the home of the job needs; empty = none."""
        return self.dataset


class Task(Job):
    """One session: an arm on a dataset and a backbone with a seed, under a protocol page, in a home of its own."""

    arm: str
    agent: str
    seeding: Seeding
    model: ModelChoice = ModelChoice()
    with_reflection: bool = True
    with_memory: bool = True
    dataset_id: str
    backbone: str
    seed: int
    page: str  # path of the protocol page
    page_sha256: str
    cognition: str = ""  # path of the cognition that the home starts with; empty = none
    cognition_sha256: str = ""
    replay: str = ""  # path of a replay table; empty = trials are trained
    replay_sha256: str = ""
    device: str = "auto"
    look: bool = True  # finalize, which evaluates on the test set; False: only freeze

    @property
    def linked(self) -> str:
        """A replay table needs no dataset."""
        return "" if self.replay else self.dataset

    @property
    def digest(self) -> str:
        """A hash of what determines the session; paths do not, the contents of their files do."""
        fields = self.model_dump(exclude={*HOUSEKEEPING, "page", "cognition", "replay", "model"})
        model = self.model.model_dump(exclude={"key_file", "prices", "max_usd"})
        return hashlib.sha256(repr(sorted((fields | model).items())).encode()).hexdigest()[:DIGEST]
