"""Soft targets from trained models: what teachers predict at a position shares the loss with its target.

With w = SHARE, the target distribution of a position whose target is t becomes

    (1 - w) onehot(t) + w q,    q = mean over the teachers of softmax(scores of the teacher), cut to its strongest items

Scores are the teacher's training logits at the position, without score priors. Of the mean, t and the STRONGEST other
items are kept, and normalised to 1. This is knowledge distillation (Hinton et al. 2015, section 2) at temperature 1
from an ensemble.

The predictions are computed once, before the training: every train event that has a predecessor is predicted from the
events before it, in windows of the teacher's `max_len` that end with the user's last event and do not overlap.

Tensor dimensions: L train events, n supervised positions, V items, k strongest items.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..kernels.losses.gathered_scores import gathered_scores
from ..models.batch import make_batch
from .batches import ranges, windows_of
from .checkpoint import LoadedModel
from .errors import TrainingError

SHARE = 0.8
"""What part of the target distribution is the teachers'."""
STRONGEST = 32
EVENTS_AT_ONCE = 4096  # of a block of users, at least one user
SCORES_AT_ONCE = 1 << 23


class TeacherTargets:
    """The predictions of the teachers for every train event, and the losses that they add."""

    def __init__(self, teachers: Sequence[LoadedModel], dataset: PreparedDataset, device: torch.device) -> None:
        for model, config in teachers:
            if model.num_items != dataset.num_items:
                raise TrainingError(
                    f"a teacher scores {model.num_items} items, the dataset has {dataset.num_items}: another dataset"
                )
            if not config.causal:
                raise TrainingError("a teacher with causal=false sees the targets; choose causal ones")
        num_events, kept = len(dataset.items), min(STRONGEST, dataset.num_items - 1)
        self.columns = torch.zeros(num_events, kept, dtype=torch.int32, device=device)  # (L, k), 0 for no prediction
        self.shares = torch.zeros(num_events, kept, device=device)  # (L, k) of these in q
        self.own = torch.zeros(num_events, dtype=torch.float32, device=device)  # (L,) of the event's own item in q
        started = time.perf_counter()
        with torch.inference_mode():
            self._predict(teachers, dataset, device)
        self.seconds = time.perf_counter() - started  # that the predictions took

    def losses(self, scaled: Tensor, table: Tensor, targets: Tensor, events: Tensor) -> Tensor:
        """(n,): s_t - sum_j q_j s_j, what a share of 1 adds to the cross-entropy with the target alone.

        Scores are dot products of scaled (n, d) and table (V, d); targets are (n,) int64, and so are the train events
        that they are. The sum of exponentials needs nothing, because both target distributions sum to 1.
        """
        columns, shares = self.columns.index_select(0, events).long(), self.shares.index_select(0, events)
        scores = gathered_scores(scaled, table, torch.cat((targets[:, None], columns), dim=1))
        others = (shares.to(scores.dtype) * scores[:, 1:]).sum(dim=1)
        return (1 - self.own.index_select(0, events).to(scores.dtype)) * scores[:, 0] - others

    def _predict(self, teachers: Sequence[LoadedModel], dataset: PreparedDataset, device: torch.device) -> None:
        items = torch.tensor(np.asarray(dataset.items), dtype=torch.int64, device=device)
        times = torch.tensor(np.asarray(dataset.timestamps), device=device)
        bounds = torch.tensor(np.asarray(dataset.offsets))
        tables = [teacher.model.eval().items.catalogue() for teacher in teachers]
        rows = max(1, SCORES_AT_ONCE // dataset.num_items)
        for block in _blocks_of_users(bounds):
            predicted = [_scaled_states(teacher, items, times, block) for teacher in teachers]
            events = predicted[0][0]  # of all teachers
            for chunk in torch.split(torch.arange(len(events)), rows):
                scores = (states[chunk] @ table.T for (_, states), table in zip(predicted, tables, strict=True))
                mean = torch.stack([torch.softmax(one, dim=1) for one in scores]).mean(dim=0)  # (rows, V)
                self._keep(mean, items[events[chunk]], events[chunk])

    def _keep(self, mean: Tensor, targets: Tensor, events: Tensor) -> None:
        """Store the strongest items of `mean` (rows, V) for these events, whose items are targets; changes `mean`."""
        own = mean.gather(1, targets[:, None])[:, 0]
        strongest, columns = mean.scatter_(1, targets[:, None], 0).topk(self.columns.shape[1], dim=1)
        total = own + strongest.sum(dim=1)
        self.columns[events] = columns.int()
        self.shares[events] = strongest / total[:, None]
        self.own[events] = own / total


def _scaled_states(teacher: LoadedModel, items: Tensor, times: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """The train events of a block of users that have a predecessor, ascending, and (len(events), d) states before them.

    items, times (L,): of all train events, on the device; bounds: where the events of each user begin and end.
    """
    model, config = teacher
    windows = config.model_copy(update={"supervision": "all", "window_stride": config.max_len})
    starts, lengths = windows_of(bounds[:-1], bounds[1:], windows)
    inputs = ranges(starts, lengths).to(items.device)
    offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
    batch = make_batch(items[inputs], offsets, config, times=times[inputs] if config.time_bias else None)
    order = inputs.argsort()
    return inputs[order] + 1, model.items.scaled(model(batch))[order]


def _blocks_of_users(bounds: Tensor) -> Iterator[Tensor]:
    """The offsets (users + 1,) of all users in blocks of about EVENTS_AT_ONCE events, each with its own end."""
    first = 0
    while first < len(bounds) - 1:
        last = max(first + 1, int(torch.searchsorted(bounds, bounds[first] + EVENTS_AT_ONCE, right=True)) - 1)
        yield bounds[first : last + 1]
        first = last
