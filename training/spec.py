"""The files in a trial's directory, through which the launcher and the worker process exchange data.

This module does not import torch, because the launcher imports it as well as the worker. The files are:

    spec.json                what to run (written before the process starts)
    progress.json            the last evaluated epoch, replaced atomically
    result.json              written last and exactly once; a trial with this file is over
    swept_ranks.npy          of a sweep: uint8 (num_settings, num_users), ranks above 255 clipped to 255
    ranks.npy                int32 (num_users,): rank of each validation target, 1 = best; num_users counts the users
                             who have one
    checkpoint.safetensors   weights of the best epoch; an ensemble has none, it names its members in spec.json
    users.npy                float32 (num_users, hidden_dim): the user states that were scored, for re-scoring; an
                             ensemble has none
    epoch_ranks.npy          uint8 (num_evaluated, num_users): ranks of the bare model after each evaluated epoch,
                             those above 255 as 255; of a resumed trial, the rows of the earlier epochs come first
    judged_ranks.npy         the same with the trial's score priors, by which it is judged, after every second epoch; of
                             trials with priors only, if `judge_epochs` asks for it and no epoch is missing
    training_state.safetensors   the state after the last epoch, from which this trial or a longer one can resume
    race.json                if the trial is raced: the RaceContext (racing.py), written before the process starts
    end.json                 if somebody asks for it: the training ends after its next evaluated epoch, with its best
                             weights, as a finished trial
    incumbent_ranks.npy      if the trial is raced: the epoch_ranks.npy or judged_ranks.npy of the incumbent, and its
                             final ranks as the last row
    signature.json           and spec_signature.json, state_signature.json: `signature.py` describes them
    log.txt                  standard output and standard error of the process
"""

from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from .. import __version__
from ..data.atomic import write_bytes
from ..data.errors import TrialError
from ..data.safe_open import read_beneath, sha256_beneath, split_beneath
from .racing import StopCause

SPEC, PROGRESS, RESULT = "spec.json", "progress.json", "result.json"
RANKS, CHECKPOINT, LOG = "ranks.npy", "checkpoint.safetensors", "log.txt"
USERS, STATE = "users.npy", "training_state.safetensors"
SWEPT_RANKS, EPOCH_RANKS, JUDGED_RANKS = "swept_ranks.npy", "epoch_ranks.npy", "judged_ranks.npy"
RACE, INCUMBENT_RANKS = "race.json", "incumbent_ranks.npy"
END = "end.json"  # not signed: whoever can write it can also end the worker
LEASE_FILE = "lease.json"  # written by the launcher; a warm worker renames its order to this file
ORDER_PATTERN = "order-*.json"  # in an inbox: written by trials/warm.py, claimed by the worker


class NamedModel(BaseModel):
    """A finished trial whose model another trial uses, as a member of an ensemble or as a teacher: its name, its
    directory, and what its files must contain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # as the configuration has it: "t004", or "SESSION/t004"
    directory: str
    files: dict[str, str]  # SHA-256 by file name, as recorded when the member ended; checkpoint and user states


class TrialSpec(BaseModel):
    """The specification of one trial, which the worker process reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session: str
    trial: str
    dataset_dir: str
    config: dict[str, Any]  # a complete TrialConfig as model_dump() returns it
    seed: int
    device: str = "auto"  # auto = cuda if available, else cpu
    threads: int = 0  # torch threads on a CPU; 0 = torch's default
    wall_seconds: float = 3600.0  # wall-clock limit, after which the worker exits
    rescore_from: str | None = None  # directory of a finished trial with equal training knobs and seed
    resume_from: str | None = None  # directory of a trial with equal seed and `continuation_hash`
    end_after: int | None = None  # the training ends with its best weights after the first evaluated epoch >= this one
    judge_epochs: bool = False  # whether each evaluated epoch is also scored with the score priors, for racing
    members: list[NamedModel] = []  # of an ensemble: what it scores, in the order of its configuration
    teachers: list[NamedModel] = []  # whose predictions the training uses, in the order of its configuration
    baselines: bool = False  # also measure the baselines, which need no model: once in a session is enough
    settings: list[dict[str, Any]] = []  # of a sweep: the scoring knobs of each setting over `config`
    reused_from: str | None = None  # "SESSION/TRIAL" that the files were copied from; no worker runs such a trial
    saved_seconds: float = 0.0  # of a reused trial: what it has cost there


class EpochRecord(BaseModel):
    """An evaluated epoch: mean training loss per supervised position and validation NDCG@10 of the bare model.

    The seconds include those of the epochs since the previous record, which are trained but not evaluated.
    """

    epoch: int  # 1 = first
    loss: float
    ndcg10: float
    judged: float | None = None  # NDCG@10 with the trial's score priors, by which it is judged; None = not ranked
    train_seconds: float
    evaluate_seconds: float


class TrialProgress(BaseModel):
    """The progress of a running trial."""

    stage: Literal["loading", "training", "scoring"] = "loading"
    epoch: int = 0
    epochs: int = 0
    best_ndcg10: float | None = None  # of the bare model
    best_epoch: int = 0  # the epoch of `best_ndcg10`
    best_judged: float | None = None  # with score priors, at the best of the epochs that were ranked with them
    epoch_seconds: float | None = None  # of this trial, training and evaluation; None = not measured yet
    hopeless: str = ""  # why the trial will not be kept, if a race that stops nothing has found that
    training_since: float | None = None  # seconds since the epoch
    seconds: float = 0.0


class TrialResult(BaseModel):
    """The result of a trial. Only with `status="finished"` it has metrics; with "failed" it has a cause."""

    status: Literal["finished", "stopped", "failed"]
    cause: str | None = None  # one sentence for people and agents
    machine_fault: bool = False  # of a failed trial: the machine is the cause, not the configuration
    stopped: StopCause | None = None  # of a stopped trial: why it would not be kept
    metrics: dict[str, float] = {}  # recall@5, recall@10, ndcg@5, ndcg@10, mrr on validation, with the score priors
    model_ndcg10: float | None = None  # validation NDCG@10 of the bare model, without score priors
    train_ndcg10: float | None = None  # NDCG@10 on a fixed sample of train targets, to measure overfitting
    popularity_ndcg10: float | None = None  # validation NDCG@10 of ranking by popularity alone
    baselines: dict[str, dict[str, float]] = {}  # if requested: validation metrics by baseline (training/baselines.py)
    ties: int = 0  # users whose target tied with another candidate (counted against the model)
    curve: list[EpochRecord] = []
    best_epoch: int = 0
    ended_after: int | None = None  # of a training that was ended on request: its last epoch
    resumed_epochs: int = 0  # epochs of the curve that an earlier trial has trained; their seconds are not this trial's
    parameters: int = 0  # of an ensemble: of all its members
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    wall_seconds: float = 0.0  # of the whole trial
    best_setting: int | None = None  # of a sweep: the index of the setting that ranks and checkpoint belong to
    files: dict[str, str] = {}  # SHA-256 of ranks, states and checkpoint by file name
    peak_bytes: int = 0  # largest resident memory of the process during the trial
    device: str = ""
    confined: str = ""  # how the process was kept from all other files: "landlock ABI 7", or why it was not
    torch_version: str = ""
    engine: str = ""  # as `engine_version` returns it


def engine_version() -> str:
    """The versions of this package and of torch; with both equal, equal specs give equal results."""
    return f"virtualmle {__version__}, torch {metadata.version('torch')}"


def encoded(model: BaseModel) -> bytes:
    """A model of this module as the content of its file."""
    return (model.model_dump_json(indent=1) + "\n").encode()


def write_model(path: Path, model: BaseModel) -> None:
    """Write a model of this module atomically as JSON."""
    write_bytes(path, encoded(model))


def read_trial_file(directory: Path, name: str) -> bytes:
    """The content of a file of a trial. Raises TrialError if it or its directories are symbolic links, and OSError."""
    root, parts = split_beneath(directory / name, 3)
    return read_beneath(root, *parts, error=TrialError)


def trial_file_sha256(directory: Path, name: str) -> str:
    """The SHA-256 of a file of a trial in hexadecimal; raises as `read_trial_file`."""
    root, parts = split_beneath(directory / name, 3)
    return sha256_beneath(root, *parts, error=TrialError)


def read_spec(directory: Path) -> TrialSpec:
    """The spec in a trial's directory; TrialError if it is missing or damaged."""
    try:
        return TrialSpec.model_validate_json(read_trial_file(directory, SPEC))
    except (OSError, ValidationError) as error:
        raise TrialError(f"{directory / SPEC} cannot be read ({type(error).__name__}); start a new trial") from None


def read_progress(directory: Path) -> TrialProgress:
    """The last progress written, or the initial progress if there is none yet."""
    if not (directory / PROGRESS).exists():
        return TrialProgress()
    return TrialProgress.model_validate_json(read_trial_file(directory, PROGRESS))


def read_result(directory: Path) -> TrialResult | None:
    """The result, or None while the trial is not over."""
    if not (directory / RESULT).exists():
        return None
    return TrialResult.model_validate_json(read_trial_file(directory, RESULT))
