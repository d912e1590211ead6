"""The files through which a trial's process talks to the world: spec in; progress, ranks, checkpoint, result out.

Torch-free: the launcher above and the worker below both read this page. All of them lie in the trial's directory:

    spec.json                what to run (written before the process starts)
    progress.json            the last finished epoch, replaced atomically
    result.json              written last, exactly once: the trial is over when it exists
    ranks.npy                int32 (num_users,): rank of each user's validation target, 1 = best
    checkpoint.safetensors   weights of the best epoch
    users.npy                float32 (num_users, hidden_dim): the states that were scored, for re-scoring
    training_state.safetensors   only while training: what a killed trial goes on from
    log.txt                  stdout and stderr of the process
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.atomic import write_bytes
from ..data.errors import TrialError

SPEC, PROGRESS, RESULT = "spec.json", "progress.json", "result.json"
RANKS, CHECKPOINT, LOG = "ranks.npy", "checkpoint.safetensors", "log.txt"
USERS, STATE = "users.npy", "training_state.safetensors"
LEASE_FILE = "lease.json"  # written by the launcher; a warm worker's order becomes it
ORDER_PATTERN = "order-*.json"  # in an inbox: trials/warm.py writes them, the worker takes them


class TrialSpec(BaseModel):
    """What one worker process is to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session: str
    trial: str
    dataset_dir: str
    config: dict[str, Any]  # a whole TrialConfig, dumped
    seed: int
    device: str = "auto"  # auto = cuda if there is one, else cpu
    threads: int = 0  # torch threads on CPU; 0 = torch's own default
    wall_seconds: float = 3600.0  # the worker ends itself after this long
    rescore_from: str | None = None  # directory of a finished trial with the same training part
    resume_from: str | None = None  # directory of an unfinished trial with the same training part and seed


class EpochRecord(BaseModel):
    """One epoch: mean training loss per supervised position, validation NDCG@10 of the bare model, seconds."""

    epoch: int  # 1 = first
    loss: float
    ndcg10: float
    train_seconds: float
    evaluate_seconds: float


class TrialProgress(BaseModel):
    """Where a running trial stands."""

    stage: Literal["loading", "training", "scoring"] = "loading"
    epoch: int = 0
    epochs: int = 0
    best_ndcg10: float | None = None
    training_since: float | None = None  # seconds since the epoch
    seconds: float = 0.0


class TrialResult(BaseModel):
    """What a trial came to. `status="failed"` has a cause and no metrics."""

    status: Literal["finished", "failed"]
    cause: str | None = None  # one sentence, for people and agents
    machine_fault: bool = False  # of a failed trial: the machine is at fault, not the configuration
    metrics: dict[str, float] = {}  # recall@5, recall@10, ndcg@5, ndcg@10, mrr on validation, with the score priors
    model_ndcg10: float | None = None  # validation NDCG@10 of the bare model, without score priors
    train_ndcg10: float | None = None  # NDCG@10 on a fixed sample of training targets: the over-fitting gap
    ties: int = 0  # users whose target tied with another candidate (counted against the model)
    curve: list[EpochRecord] = []
    best_epoch: int = 0
    parameters: int = 0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    wall_seconds: float = 0.0  # whole process
    device: str = ""
    torch_version: str = ""


def write_model(path: Path, model: BaseModel) -> None:
    """Write a model of this page atomically."""
    write_bytes(path, (model.model_dump_json(indent=1) + "\n").encode())


def read_spec(directory: Path) -> TrialSpec:
    """The spec in a trial's directory; TrialError where it is gone or damaged."""
    try:
        return TrialSpec.model_validate_json((directory / SPEC).read_bytes())
    except (OSError, ValidationError) as error:
        raise TrialError(f"{directory / SPEC} cannot be read ({type(error).__name__}); start a new trial") from None


def read_progress(directory: Path) -> TrialProgress:
    """The last progress written, or the initial state where there is none yet."""
    path = directory / PROGRESS
    return TrialProgress.model_validate_json(path.read_bytes()) if path.exists() else TrialProgress()


def read_result(directory: Path) -> TrialResult | None:
    """The result, or None while the trial is not over."""
    path = directory / RESULT
    return TrialResult.model_validate_json(path.read_bytes()) if path.exists() else None
