"""The whole state of a training run in one file, so that a killed trial goes on where it was.

Weights, optimizer, average, best weights and every source of random numbers: continuing from the file equals, bit for
bit on a CPU, not having stopped. Of another version, dataset, configuration or seed it is no use and is refused.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..data.atomic import write_bytes
from .errors import StateError
from .spec import EpochRecord

if TYPE_CHECKING:
    from .trainer import Training

METADATA = "virtualmle_training"


def save_state(
    path: Path, training: "Training", curve: list[EpochRecord], best: int, weights: dict[str, Tensor]
) -> None:
    """Write the state after the last epoch of `curve` atomically; `weights` are those of epoch `best`."""
    header = {"identity": training.identity, "curve": [record.model_dump() for record in curve], "best": best}
    header["average_step"] = training.average.step if training.average else 0
    tensors = {**_tensors(training), **{f"best.{name}": tensor for name, tensor in weights.items()}}
    content = save(
        {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
        metadata={METADATA: json.dumps(header, sort_keys=True)},
    )
    write_bytes(path, content)


def load_state(path: Path, training: "Training") -> tuple[list[EpochRecord], int, dict[str, Tensor]]:
    """Bring `training` to the saved state; returns curve, best epoch and the weights of that.

    StateError where the file cannot be read or belongs to another run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise StateError(f"{str(path)!r} cannot be read as a training state ({error}); start from scratch") from None
    if header.get("identity") != training.identity:
        raise StateError(f"{str(path)!r} belongs to another trial, dataset or version; start from scratch")
    with torch.no_grad():
        for name, tensor in _tensors(training).items():
            if not name.startswith("random."):
                tensor.copy_(saved[name])
    _set_random_states(training, saved)
    if training.average:
        training.average.step = header["average_step"]
    training.step = len(header["curve"]) * training.batches.num_batches
    curve = [EpochRecord(**record) for record in header["curve"]]
    best = {name.removeprefix("best."): tensor for name, tensor in saved.items() if name.startswith("best.")}
    return curve, header["best"], best


def _tensors(training: "Training") -> dict[str, Tensor]:
    """Everything that an epoch changes, by name; the tensors are the live ones but for the random states."""
    optimizer = training.optimizer
    groups = {
        "weight": [parameter.detach() for parameter in optimizer.parameters],
        "mean": optimizer.means,
        "square": optimizer.squares,
        "step": optimizer.steps,
        "average": training.average.averages if training.average else [],
    }
    named = {f"{group}.{place}": tensor for group, tensors in groups.items() for place, tensor in enumerate(tensors)}
    random = {f"random.{name}": generator.get_state() for name, generator in _generators(training).items()}
    random["random.default"] = torch.get_rng_state()
    if training.device.type == "cuda":
        random["random.cuda"] = torch.cuda.get_rng_state(training.device)
    return named | random


def _set_random_states(training: "Training", saved: dict[str, Tensor]) -> None:
    for name, generator in _generators(training).items():
        generator.set_state(saved[f"random.{name}"])
    torch.set_rng_state(saved["random.default"])
    if training.device.type == "cuda":
        torch.cuda.set_rng_state(saved["random.cuda"], training.device)


def _generators(training: "Training") -> dict[str, torch.Generator]:
    return {
        "order": training.batches.generator,
        "augmentation": training.batches.augmentation,
        "negatives": training.negatives,
    }
