"""Build a model from a configuration and initialise its weights."""

import torch

from .config import TrialConfig
from .hstu import HSTU
from .sasrec import SASRec
from .sequence_model import SequenceModel


def build_model(config: TrialConfig, num_items: int, seed: int) -> SequenceModel:
    """A float32 model on the CPU. The same arguments give bit-identical weights, whatever torch's global seed is.

    With the same seed, parameters of the same name and shape start equal in all configurations.
    """
    model: SequenceModel = SASRec(config, num_items) if config.backbone == "sasrec" else HSTU(config, num_items)
    model.initialise(seed)
    return model


def num_parameters(model: torch.nn.Module) -> int:
    """The number of trainable parameters; a tied table counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
