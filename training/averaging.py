"""The exponential moving average of a model's weights, which is evaluated and saved if `ema_decay` is set."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """average <- d average + (1 - d) weights after each step, with d = min(decay, (1 + step) / (10 + step)).

    The smaller d of the first steps reduces the influence of the random initial weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.step = decay, 0
        self.parameters = list(model.parameters())
        self.averages: list[Tensor] = [parameter.detach().clone() for parameter in self.parameters]

    def next_share(self) -> float:
        """Count the next step and return 1 - d, the share of its weights in the average."""
        self.step += 1
        return 1 - min(self.decay, (1 + self.step) / (10 + self.step))

    @torch.no_grad()
    def update(self, share: float | Tensor) -> None:
        """Move the average towards the weights by `share` = 1 - d; a () float32 tensor is read on the device."""
        weights = [parameter.detach() for parameter in self.parameters]
        if isinstance(share, Tensor):
            torch._foreach_lerp_(self.averages, weights, [share] * len(weights))
        else:
            torch._foreach_lerp_(self.averages, weights, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the model has the averaged weights; its own weights are restored afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for index, parameter in enumerate(self.parameters):
            parameter.data, self.averages[index] = self.averages[index], parameter.data
