"""Training for a fixed number of epochs without evaluation, for a model that nothing is held back from.

The steps, random streams and schedule are those of `trainer.fit`, of which nothing else is used: no validation event is
read, no state is written, and the weights are those after the last epoch.
"""

from collections.abc import Callable, Sequence

import torch

from ..data.prepared import PreparedDataset
from ..models.config import TrialConfig
from ..models.sequence_model import SequenceModel
from .checkpoint import LoadedModel, copy_weights, restore_weights
from .trainer import Training


def train_whole(
    config: TrialConfig,
    events: PreparedDataset,
    seed: int,
    device: torch.device,
    epochs: int,
    on_epoch: Callable[[int], None] = lambda epoch: None,
    precision: str = "ieee",
    teachers: Sequence[LoadedModel] = (),
) -> SequenceModel:
    """The model after `epochs` epochs on the train events of `events`, on the CPU in evaluation mode.

    A decaying schedule is planned over `config.epochs`, as it was in the trial. precision: of the full softmax's
    products, as `linear_cross_entropy` takes it. teachers: the models that `config.teachers` names. TrainingError if
    the loss is not finite.
    """
    training = Training(config, events, seed, device, precision, teachers)
    for epoch in range(1, epochs + 1):
        training.epoch()
        on_epoch(epoch)
    with training.evaluated_weights():
        weights = copy_weights(training.model)
    restore_weights(training.model, weights)
    return training.model.cpu().eval()
