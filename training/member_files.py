"""Whether the checkpoint of an ensemble's member is still the one that was recorded. Does not import torch.

The worker, the examiner and `finalize` check it, so that the model that is looked at is the model that was measured.
"""

from collections.abc import Sequence
from pathlib import Path

from .errors import TrainingError
from .spec import CHECKPOINT, EnsembleMember, trial_file_sha256


def beside(directory: Path, members: Sequence[EnsembleMember]) -> list[EnsembleMember]:
    """The members of the ensemble in `directory`, found beside it, because a home may have been moved."""
    folders = [directory.parents[1] / member.name if "/" in member.name else directory.parent / member.name
               for member in members]  # fmt: skip
    return [m.model_copy(update={"directory": str(folder)}) for m, folder in zip(members, folders, strict=True)]


def check_checkpoint(member: EnsembleMember) -> Path:
    """The path of the member's checkpoint. TrainingError if it is missing, or is not the one that was recorded."""
    path = Path(member.directory) / CHECKPOINT
    if not path.exists():
        raise TrainingError(f"{path} of the ensemble's member {member.name} is missing; restore it, or leave it out")
    if trial_file_sha256(path.parent, CHECKPOINT) != member.files.get(CHECKPOINT):
        raise TrainingError(
            f"{path} of the ensemble's member {member.name} is not the checkpoint that the trial wrote; restore it, or "
            "leave the member out"
        )
    return path
