"""What a step minimises: the loss that the configuration names, on states and targets, with its own negatives.

Tensor dimensions: n supervised positions, m negatives.
"""

import math

import torch
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..kernels.losses.gathered_scores import gathered_scores
from ..kernels.losses.linear_cross_entropy import linear_cross_entropy
from ..kernels.losses.sampled_softmax import sampled_softmax_loss
from ..models.config import TrialConfig
from ..models.item_table import ItemTable
from .losses import binary_cross_entropy, corrected_by_logq, gbce_beta, sampled_softmax
from .negatives import NegativeSampler


class Objective:
    """The supervised loss of one trial."""

    def __init__(
        self, config: TrialConfig, dataset: PreparedDataset, device: torch.device, generator: torch.Generator
    ) -> None:
        self.config = config
        self.sampler = NegativeSampler(config, dataset, device, generator)
        self.num_candidates = dataset.num_items if config.loss == "full_softmax" else config.num_negatives
        self.beta = 1.0
        if config.loss == "gbce":
            self.beta = gbce_beta(config.num_negatives, dataset.num_items, config.gbce_calibration)

    def loss(self, items: ItemTable, states: Tensor, targets: Tensor, counted: Tensor | None = None) -> Tensor:
        """The mean loss of states (n, hidden_dim) that are to predict targets (n,) int64.

        counted (n,) bool: the rows that the mean goes over; the others, which fill a batch up to a fixed shape, have
        no effect on loss and gradients.
        """
        config = self.config
        if config.loss == "full_softmax":
            return self._full_softmax(items, states, targets, counted)
        drawn = self._draw(len(targets))
        if config.loss == "sampled_softmax" and states.is_cuda:
            return self.fused_sampled_softmax(items, states, targets, drawn, counted)
        own, negatives = self.scores(items, states, targets, drawn)
        collisions = targets[:, None] == drawn
        if config.loss != "sampled_softmax":
            return binary_cross_entropy(own, negatives, collisions, self.beta, counted)
        if config.logq_correction:
            negatives = corrected_by_logq(negatives, self.sampler.log_q[drawn], config.num_negatives)
        return sampled_softmax(own, negatives, collisions, config.label_smoothing, counted)

    def _full_softmax(self, items: ItemTable, states: Tensor, targets: Tensor, counted: Tensor | None) -> Tensor:
        scaled, table, smoothing = items.scaled(states), items.catalogue(), self.config.label_smoothing
        if counted is None:
            return linear_cross_entropy(scaled, table, targets, smoothing)
        # a state of zeros has the loss log V and gives no item a gradient: the kernel need not know of `counted`
        loss = linear_cross_entropy(scaled.masked_fill(~counted[:, None], 0), table, targets, smoothing)
        rows, count = len(counted), counted.sum()
        return (loss * rows - (rows - count) * math.log(len(table))) / count

    def fused_sampled_softmax(
        self, items: ItemTable, states: Tensor, targets: Tensor, drawn: Tensor, counted: Tensor | None = None
    ) -> Tensor:
        """The same loss as one op, on the table as it is: drawn (m,) for all positions, or (n, m).

        The op's gradient covers the table that it is given. Where the catalogue's has to be sparse, that is a copy of
        the rows that occur, and the gradient of the look-up has these rows alone; their number makes the host wait.
        """
        if counted is not None:
            return self._fused_over_counted(items, states, targets, drawn, counted)
        config = self.config
        table, log_q = items.output, self.sampler.log_q if config.logq_correction else None
        if items.row_sparse:
            needed, places = torch.unique(torch.cat((targets, drawn.flatten())), return_inverse=True)
            table, log_q = items.rows(needed), None if log_q is None else log_q[needed]
            targets, drawn = places[: len(targets)], places[len(targets) :].view(drawn.shape)
        return sampled_softmax_loss(
            states, table, targets, drawn, log_q=log_q, temperature=items.temperature, cosine=items.cosine,
            label_smoothing=config.label_smoothing,
        )  # fmt: skip

    def _fused_over_counted(
        self, items: ItemTable, states: Tensor, targets: Tensor, drawn: Tensor, counted: Tensor
    ) -> Tensor:
        """Rows that do not count become copies of one with a state of zeros: a known loss, and no gradient."""
        targets = torch.where(counted, targets, targets[:1])
        if drawn.dim() == 2:
            drawn = torch.where(counted[:, None], drawn, drawn[:1])
        loss = self.fused_sampled_softmax(items, states.masked_fill(~counted[:, None], 0), targets, drawn)
        candidates = drawn.view(-1, drawn.shape[-1])[:1]  # (1, m)
        own, negatives = states.new_zeros(1), states.new_zeros(candidates.shape)
        if self.config.logq_correction:
            negatives = corrected_by_logq(negatives, self.sampler.log_q[candidates], self.config.num_negatives)
        known = sampled_softmax(own, negatives, targets[:1, None] == candidates, self.config.label_smoothing)
        rows, count = len(counted), counted.sum()
        return (loss * rows - (rows - count) * known) / count

    @staticmethod
    def scores(items: ItemTable, states: Tensor, targets: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) scores of the targets and (n, m) of the drawn items: (m,) for all positions, or (n, m).

        One look-up for all rows that are needed, so that the backward pass writes one table gradient. Where the draws
        outnumber the items, those rows are the whole table (but never where its gradient has to be sparse); on a GPU
        always, since it would have to be waited for to know how many rows are needed.
        """
        scaled = items.scaled(states)
        count = len(targets)
        if drawn.dim() == 1:
            vectors = items.vectors(torch.cat((targets, drawn)))
            return (scaled * vectors[:count]).sum(-1), scaled @ vectors[count:].T
        candidates = torch.cat((targets[:, None], drawn), dim=1)
        few = len(items.output) > candidates.numel() and not states.is_cuda
        if items.row_sparse or few:
            needed, places = torch.unique(candidates, return_inverse=True)
            scores = gathered_scores(scaled, items.vectors(needed), places)
        else:  # nearly every item is a candidate: sorting them out would cost more than it saves
            scores = gathered_scores(scaled, items.catalogue(), candidates)
        return scores[:, 0], scores[:, 1:]

    def _draw(self, count: int) -> Tensor:
        if self.config.negative_sharing == "batch":
            return self.sampler.draw(self.config.num_negatives)
        return self.sampler.draw(count, self.config.num_negatives)
