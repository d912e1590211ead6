"""The supervised loss of a training step, computed from states and targets; it draws the negatives.

Tensor dimensions: n supervised positions, m negatives.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.prepared import PreparedDataset
from ..kernels.losses.gathered_scores import gathered_scores
from ..kernels.losses.linear_cross_entropy import linear_cross_entropy
from ..kernels.losses.sampled_softmax import sampled_softmax_loss
from ..models.config import TrialConfig, teachers_of
from ..models.item_table import ItemTable
from .checkpoint import LoadedModel
from .distillation import SuccessorTargets
from .errors import TrainingError
from .losses import apply_logq_correction, binary_cross_entropy, gbce_beta, mean_loss, sampled_softmax
from .negatives import NegativeSampler
from .teachers import SHARE, TeacherTargets


class Objective:
    """The supervised loss of one trial."""

    def __init__(
        self,
        config: TrialConfig,
        dataset: PreparedDataset,
        device: torch.device,
        generator: torch.Generator,
        precision: str = "ieee",
        teachers: Sequence[LoadedModel] = (),
    ) -> None:
        self.config = config
        self.precision = precision  # of the full softmax, as `linear_cross_entropy` takes it
        self.sampler = NegativeSampler(config, dataset, device, generator)
        self.num_candidates = dataset.num_items if config.loss == "full_softmax" else config.num_negatives
        taught = bool(teachers_of(config))
        if taught and not teachers:
            raise TrainingError(f"the models of teachers={config.teachers} are missing; run the same trial again")
        self.teachers = TeacherTargets(teachers, dataset, device) if taught else None
        distilled = config.prior_distillation > 0 and config.loss == "full_softmax" and not taught
        self.successors = SuccessorTargets(config, dataset, device) if distilled else None
        self.beta = 1.0
        if config.loss == "gbce":
            self.beta = gbce_beta(config.num_negatives, dataset.num_items, config.gbce_calibration)

    def loss(
        self,
        items: ItemTable,
        states: Tensor,
        targets: Tensor,
        counted: Tensor | None = None,
        latest: Tensor | None = None,
        events: Tensor | None = None,
    ) -> Tensor:
        """The mean loss of predicting targets (n,) int64 from states (n, hidden_dim).

        counted (n,) bool: the rows that the mean covers. The other rows pad a batch to a fixed shape and affect
        neither the loss nor the gradients. latest (n,) int64: the input item of each row, which `prior_distillation`
        needs. events (n,) int64: the train event that each target is, which `teachers` need.
        """
        config = self.config
        if config.loss == "full_softmax":
            loss = self._full_softmax(items, states, targets, counted)
            if self.teachers is not None:
                assert events is not None, "teachers need the events of the targets"
                added, share = self.teachers.losses(items.scaled(states), items.catalogue(), targets, events), SHARE
            elif self.successors is not None:
                assert latest is not None, "prior_distillation needs the input items"
                added = self.successors.losses(items.scaled(states), items.catalogue(), targets, latest)
                share = config.prior_distillation
            else:
                return loss
            return loss + share * (1 - config.label_smoothing) * mean_loss(added, counted)
        drawn = self._draw(len(targets))
        if config.loss == "sampled_softmax" and states.is_cuda:
            return self.fused_sampled_softmax(items, states, targets, drawn, counted)
        target_scores, negative_scores = self.scores(items, states, targets, drawn)
        collisions = targets[:, None] == drawn
        if config.loss != "sampled_softmax":
            return binary_cross_entropy(target_scores, negative_scores, collisions, self.beta, counted)
        if config.logq_correction:
            negative_scores = apply_logq_correction(negative_scores, self.sampler.log_q[drawn], config.num_negatives)
        return sampled_softmax(target_scores, negative_scores, collisions, config.label_smoothing, counted)

    def _full_softmax(self, items: ItemTable, states: Tensor, targets: Tensor, counted: Tensor | None) -> Tensor:
        scaled, table, smoothing = items.scaled(states), items.catalogue(), self.config.label_smoothing
        if counted is None:
            return linear_cross_entropy(scaled, table, targets, smoothing, precision=self.precision)
        # the kernel has no `counted`: uncounted states become zero, with the loss log V and no gradient for any item
        masked = scaled.masked_fill(~counted[:, None], 0)
        loss = linear_cross_entropy(masked, table, targets, smoothing, precision=self.precision)
        rows, count = len(counted), counted.sum()
        return (loss * rows - (rows - count) * math.log(len(table))) / count

    def fused_sampled_softmax(
        self, items: ItemTable, states: Tensor, targets: Tensor, drawn: Tensor, counted: Tensor | None = None
    ) -> Tensor:
        """The sampled softmax loss as one fused op; `drawn` is (m,) for all positions, or (n, m).

        The op returns a dense gradient of the table that it receives. If the catalogue's gradient has to be sparse, the
        op receives a copy of the rows that occur, and the backward pass of the look-up yields these rows only. The host
        waits for the device to count these rows.
        """
        if counted is not None:
            return self._fused_over_counted(items, states, targets, drawn, counted)
        config = self.config
        table, log_q = items.output, self.sampler.log_q if config.logq_correction else None
        if items.row_sparse:
            needed, rows = torch.unique(torch.cat((targets, drawn.flatten())), return_inverse=True)
            table, log_q = items.rows(needed), None if log_q is None else log_q[needed]
            targets, drawn = rows[: len(targets)], rows[len(targets) :].view(drawn.shape)
        return sampled_softmax_loss(
            states, table, targets, drawn, log_q=log_q, temperature=items.temperature, cosine=items.cosine,
            label_smoothing=config.label_smoothing,
        )  # fmt: skip

    def _fused_over_counted(
        self, items: ItemTable, states: Tensor, targets: Tensor, drawn: Tensor, counted: Tensor
    ) -> Tensor:
        """Uncounted rows get a zero state and the candidates of row 0: their loss is known, their gradient zero."""
        targets = torch.where(counted, targets, targets[:1])
        if drawn.dim() == 2:
            drawn = torch.where(counted[:, None], drawn, drawn[:1])
        loss = self.fused_sampled_softmax(items, states.masked_fill(~counted[:, None], 0), targets, drawn)
        candidates = drawn.view(-1, drawn.shape[-1])[:1]  # (1, m)
        target_score, negative_scores = states.new_zeros(1), states.new_zeros(candidates.shape)
        if self.config.logq_correction:
            log_q = self.sampler.log_q[candidates]
            negative_scores = apply_logq_correction(negative_scores, log_q, self.config.num_negatives)
        collisions = targets[:1, None] == candidates
        known = sampled_softmax(target_score, negative_scores, collisions, self.config.label_smoothing)
        rows, count = len(counted), counted.sum()
        return (loss * rows - (rows - count) * known) / count

    @staticmethod
    def scores(items: ItemTable, states: Tensor, targets: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n,) of the targets and (n, m) of the drawn items; `drawn` is (m,) for all positions, or (n, m).

        One look-up fetches all rows, so that the backward pass writes one table gradient. With (n, m) draws, it
        fetches the whole table if there are at least as many candidates as items, and always on a GPU, where counting
        distinct candidates would make the host wait. A table whose gradient has to be sparse is never fetched whole.
        """
        scaled = items.scaled(states)
        count = len(targets)
        if drawn.dim() == 1:
            vectors = items.vectors(torch.cat((targets, drawn)))
            return (scaled * vectors[:count]).sum(-1), scaled @ vectors[count:].T
        candidates = torch.cat((targets[:, None], drawn), dim=1)
        few = len(items.output) > candidates.numel() and not states.is_cuda
        if items.row_sparse or few:
            needed, rows = torch.unique(candidates, return_inverse=True)
            scores = gathered_scores(scaled, items.vectors(needed), rows)
        else:  # nearly every item is a candidate: finding the distinct ones would cost more than it saves
            scores = gathered_scores(scaled, items.catalogue(), candidates)
        return scores[:, 0], scores[:, 1:]

    def _draw(self, count: int) -> Tensor:
        if self.config.negative_sharing == "batch":
            return self.sampler.draw(self.config.num_negatives)
        return self.sampler.draw(count, self.config.num_negatives)
