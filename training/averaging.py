"""An exponential moving average of a model's weights: what is evaluated and kept where `ema_decay` is set."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """avg <- d avg + (1 - d) weights after each step, with d = min(decay, (1 + step) / (10 + step)).

    The smaller d of the first steps lets the average forget the random weights that it starts from.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.step = decay, 0
        self.parameters = list(model.parameters())
        self.averages: list[Tensor] = [parameter.detach().clone() for parameter in self.parameters]

    def next_share(self) -> float:
        """1 - d of the step that comes next, which is thereby counted."""
        self.step += 1
        return 1 - min(self.decay, (1 + self.step) / (10 + self.step))

    @torch.no_grad()
    def update(self, share: float | Tensor) -> None:
        """Take one step's weights in by their share; as a tensor, () float32, it stays on the device."""
        weights = [parameter.detach() for parameter in self.parameters]
        if isinstance(share, Tensor):
            torch._foreach_lerp_(self.averages, weights, [share] * len(weights))
        else:
            torch._foreach_lerp_(self.averages, weights, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for place, parameter in enumerate(self.parameters):
            parameter.data, self.averages[place] = self.averages[place], parameter.data
