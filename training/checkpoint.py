"""Checkpoints: the weights of a model as safetensors, and the configuration that rebuilds it in the metadata."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..data.hashing import write_hashed
from ..data.safe_open import refuse_links, split_beneath
from ..models.build import build_model
from ..models.config import TrialConfig
from ..models.sequence_model import SequenceModel
from .errors import TrainingError

METADATA = "virtualmle"  # one key: safetensors writes several in random order, but equal models must give equal bytes


class LoadedModel(NamedTuple):
    """A trained model on the device that uses it, and its configuration."""

    model: SequenceModel
    config: TrialConfig


def copy_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters by name; a tied table occurs once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def restore_weights(model: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights from `copy_weights` back into the model, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def checkpoint_bytes(model: SequenceModel, config: TrialConfig, num_items: int) -> bytes:
    """A checkpoint file of the model; equal weights and configurations give equal bytes."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in copy_weights(model).items()}
    header = {METADATA: json.dumps({"config": config.model_dump(), "num_items": num_items}, sort_keys=True)}
    return save(weights, metadata=header)


def save_checkpoint(path: Path, model: SequenceModel, config: TrialConfig, num_items: int) -> str:
    """Write the model to `path` atomically; returns the SHA-256 of the file."""
    return write_hashed(path, checkpoint_bytes(model, config, num_items))


def load_checkpoint(path: Path) -> tuple[SequenceModel, TrialConfig]:
    """The model, on the CPU in evaluation mode, and its configuration. TrainingError if `path` is not a checkpoint."""
    root, parts = split_beneath(path, 3)
    refuse_links(root, *parts, error=TrainingError)
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(METADATA, "null"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{str(path)!r} cannot be read as a checkpoint ({error}); run the trial again") from None
    if header is None:
        raise TrainingError(f"{str(path)!r} contains no VirtualMLE configuration; it is not a VirtualMLE checkpoint")
    config = TrialConfig(**header["config"])
    model = rebuild(weights, config, header["num_items"])
    if model is None:
        raise TrainingError(f"{str(path)!r} holds weights that do not fit its configuration; run the trial again")
    return model, config


def rebuild(weights: dict[str, Tensor], config: TrialConfig, num_items: int) -> SequenceModel | None:
    """The model with these weights, on the CPU in evaluation mode; None if they do not fit the configuration."""
    model = build_model(config, num_items, seed=0)
    if {name: tensor.shape for name, tensor in weights.items()} != _shapes(model):
        return None
    restore_weights(model, weights)
    return model.eval()


def _shapes(model: SequenceModel) -> dict[str, object]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}
