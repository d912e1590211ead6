"""Whether the checkpoint of an ensemble's member, or of a teacher, is the one that was recorded. Imports no torch.

The worker, the examiner and `finalize` check it, so that the model that is looked at is the model that was measured.
"""

from collections.abc import Sequence
from pathlib import Path

from .errors import TrainingError
from .spec import CHECKPOINT, NamedModel, trial_file_sha256


def beside(directory: Path, members: Sequence[NamedModel]) -> list[NamedModel]:
    """The members or teachers of the trial in `directory`, found beside it, because a home may have been moved."""
    folders = [directory.parents[1] / member.name if "/" in member.name else directory.parent / member.name
               for member in members]  # fmt: skip
    return [m.model_copy(update={"directory": str(folder)}) for m, folder in zip(members, folders, strict=True)]


def check_checkpoint(member: NamedModel) -> Path:
    """The path of the trial's checkpoint. TrainingError if it is missing, or is not the one that was recorded."""
    path = Path(member.directory) / CHECKPOINT
    if not path.exists():
        raise TrainingError(f"{path}, which this trial uses, is missing; restore it, or leave {member.name} out")
    if trial_file_sha256(path.parent, CHECKPOINT) != member.files.get(CHECKPOINT):
        raise TrainingError(
            f"{path}, which this trial uses, is not the checkpoint that {member.name} wrote; restore it, or leave "
            f"{member.name} out"
        )
    return path
