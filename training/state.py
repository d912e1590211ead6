"""Reads and writes the state of a training run as one file, from which a killed or a longer trial can resume.

`Training.state_dict` decides what a state contains. A file belongs to one identity (dataset, configuration without
limits, seed and versions); `read_state` refuses it for any other.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..data.atomic import write_bytes
from .errors import StateError
from .spec import EpochRecord
from .state_outline import METADATA

BEST_PREFIX = "best."
EPOCH_RANKS, JUDGED_RANKS = "epoch_ranks", "judged_ranks"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """The state of a run after the last epoch of `curve`."""

    identity: str  # of the run that can resume from this state
    curve: list[EpochRecord]  # the evaluated epochs, all of them evaluated under any limits (`stopping.on_grid`)
    best_epoch: int  # 1 = first; 0 = none yet
    best_weights: dict[str, Tensor]  # weights after `best_epoch`
    epoch_ranks: list[NDArray[np.uint8]]  # clipped ranks (num_users,) of the bare model, one array per epoch of `curve`
    training: dict[str, Any]  # Training.state_dict(): tensors, and values that JSON can represent
    judged_ranks: list[NDArray[np.uint8]] = field(default_factory=list)
    """Those with score priors after `judged_epochs`; empty if there are none, or if they are not known."""
    scoring: dict[str, Any] = field(default_factory=dict)  # the scoring knobs of `judged_ranks`

    @property
    def last_epoch(self) -> int:
        """The epoch after which the state was taken; 0 = before the first."""
        return self.curve[-1].epoch if self.curve else 0


@dataclass(frozen=True)
class SignedFile:
    """The file of a training state, and what gets the content of each state to sign it before it is written."""

    path: Path
    sign: Callable[[bytes], None]


def write_state(file: Path | SignedFile, state: TrainingState) -> None:
    """Write `state` atomically."""
    tensors = {name: value for name, value in state.training.items() if isinstance(value, Tensor)}
    header = {name: value for name, value in state.training.items() if name not in tensors}
    header |= {
        "identity": state.identity,
        "curve": [record.model_dump() for record in state.curve],
        "best": state.best_epoch,
        "scoring": state.scoring,
    }
    tensors |= {f"{BEST_PREFIX}{name}": tensor for name, tensor in state.best_weights.items()}
    tensors[EPOCH_RANKS] = torch.tensor(np.stack(state.epoch_ranks))
    if state.judged_ranks:
        tensors[JUDGED_RANKS] = torch.tensor(np.stack(state.judged_ranks))
    content = save(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
        metadata={METADATA: json.dumps(header, sort_keys=True)},
    )
    if isinstance(file, SignedFile):
        file.sign(content)
        file = file.path
    write_bytes(file, content)


def read_state(path: Path, identity: str) -> TrainingState:
    """The state in a file; StateError if it cannot be read or belongs to another identity."""
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise StateError(f"{str(path)!r} cannot be read as a training state ({error}); train from scratch") from None
    if header.pop("identity", None) != identity:
        raise StateError(f"{str(path)!r} belongs to another trial, dataset or version; train from scratch")
    best = {name.removeprefix(BEST_PREFIX): tensors.pop(name) for name in list(tensors) if name.startswith(BEST_PREFIX)}
    curve = [EpochRecord(**record) for record in header.pop("curve")]
    ranks = list(tensors.pop(EPOCH_RANKS).numpy())
    judged = list(tensors.pop(JUDGED_RANKS).numpy()) if JUDGED_RANKS in tensors else []
    scoring = header.pop("scoring", {})
    return TrainingState(identity, curve, header.pop("best"), best, ranks, {**header, **tensors}, judged, scoring)
