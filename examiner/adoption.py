"""Signs what a home contains that is older than the key for it: once, when the key is created, and without a check.

From then on, files without a signature are refused. A trial that was running at that moment has a worker without a key;
it is listed, so that its files can be signed when it ends.
"""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..data.dataset_signature import sign_dataset
from ..data.errors import TrialError
from ..data.mac import derive
from ..data.prepared import MANIFEST, SEALED
from ..training.signature import sign_as_it_is
from ..training.spec import RESULT, SPEC, read_spec


class Adoption(BaseModel):
    """What was signed: the content of adopted.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: str  # UTC, ISO 8601
    datasets: list[str]
    trials: int
    unfinished: list[str]  # SESSION/HANDLE of the trials that had no result


def adopt_home(state: Path, key: bytes) -> Adoption | None:
    """Sign all datasets and trials below `state`, a home's .virtualmle; None if there are none. Raises OSError."""
    datasets = [path.parent for path in sorted(state.glob(f"data/*/{MANIFEST}")) if (path.parent / SEALED).exists()]
    for directory in datasets:
        sign_dataset(directory, key)
    trials = [path.parent for path in sorted(state.glob(f"sessions/*/*/{SPEC}"))]
    finished = [directory for directory in trials if (directory / RESULT).exists()]
    for directory in finished:
        sign_old_trial(directory, derive(key, "session", directory.parent.name))
    if not datasets and not trials:
        return None
    return Adoption(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        datasets=[directory.name for directory in datasets],
        trials=len(finished),
        unfinished=[f"{each.parent.name}/{each.name}" for each in trials if each not in finished],
    )


def sign_old_trial(directory: Path, session_key: bytes) -> None:
    """Sign the files of a trial whose worker had no key; one whose spec cannot be read stays unsigned."""
    try:
        spec = read_spec(directory)
    except TrialError:
        return
    sign_as_it_is(directory, session_key, spec, dataset_id="", by="adoption")
