"""An exported model as one graph of plain torch operators, for torch.export and ONNX: histories in, top-k out.

The graph has the modules of the model itself. Only the layout differs: every history is a row of equal width, padded
at the end, instead of packed tokens, because packing depends on the data (`kernels/jagged/packing.py`).

Not covered: score priors and re-ranking, which read a history's rows of large sparse tables, and original ids.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.jagged.packing import PackingPlan, RowGroup, Rows
from ..models.batch import JaggedBatch
from ..models.local_mixing import FrequencyFilter, ShortConvolution
from ..models.priors import MIN_DEVIATION
from ..models.sequence_model import SequenceModel
from ..training.catalogue_scores import ItemFactors, joint_factors


@dataclass(frozen=True, eq=False)
class PaddedPlan(PackingPlan):
    """The layout of padded rows: token `row * width + column` is in that slot, padding included."""

    width: Any = 0  # an integer, or while exporting a symbol

    @classmethod
    def of_rows(cls, lengths: Tensor, width: Any, times: Tensor | None = None) -> "PaddedPlan":
        """Rows of `width` tokens, of which the first `lengths` (rows,) are a history; times int64 (rows, width)."""
        columns = torch.arange(width)
        segments = torch.where(columns < lengths[:, None], 0, -1).to(torch.int32)  # padding attends to padding only
        tokens = torch.arange(segments.numel())
        rows = Rows((RowGroup(segments, times, single=True),), tokens, tokens, tokens[:0])
        offsets = torch.arange(lengths.shape[0] + 1) * width
        positions = columns.expand(lengths.shape[0], width).flatten()
        return cls(offsets, positions, lambda: rows, None if times is None else times.flatten(), width)

    @property
    def longest(self) -> int | None:
        """Unknown, because the lengths are data."""
        return None

    def gather(self, tokens: Tensor) -> list[Tensor]:
        """(rows * width, ...) to (rows, width, ...)."""
        return [tokens.view(-1, self.width, *tokens.shape[1:])]

    def scatter(self, rows: Sequence[Tensor]) -> Tensor:
        """The inverse of `gather`."""
        return rows[0].flatten(0, 1)


class PortableEncoder(nn.Module):
    """One model: padded histories to user vectors, whose dot products with the item vectors are scores."""

    def __init__(self, model: SequenceModel) -> None:
        super().__init__()
        self.model = _without_transforms(copy.deepcopy(model).cpu().eval().requires_grad_(False))
        self.max_len = model.config.max_len

    def forward(self, histories: Tensor, lengths: Tensor, times: Tensor | None) -> Tensor:
        """(users, hidden_dim); see PortableModel for the arguments. The last max_len events are read."""
        kept = lengths.clamp(1, self.max_len)
        width: Any = kept.max().item()
        _promise(width >= 1)
        _promise(width <= self.max_len)
        first = (lengths - self.max_len).clamp(min=0)
        columns = (first[:, None] + torch.arange(width)).clamp(max=histories.shape[1] - 1)
        filled = torch.arange(width) < lengths[:, None]  # also False for the one token that an empty history gets
        items = histories.gather(1, columns).masked_fill(~filled, 0)
        moments = None if times is None else times.gather(1, columns)
        plan = PaddedPlan.of_rows(kept, width, moments)
        states = self.model(JaggedBatch(items.flatten(), plan.offsets, plan)).view(lengths.shape[0], width, -1)
        last = (kept - 1)[:, None, None].expand(-1, 1, states.shape[2])
        vectors: Tensor = self.model.items.scaled(states.gather(1, last).squeeze(1))
        return vectors


class PortableModel(nn.Module):
    """The members of an export: padded histories to the k best items, their scores, and the user vectors."""

    item_vectors: Tensor
    counts: Tensor
    nameless: Tensor | None

    def __init__(self, models: Sequence[SequenceModel], counts: Tensor, nameless: Tensor | None = None) -> None:
        """nameless: bool (num_items,), items without an id, which are never among the best."""
        super().__init__()
        encoders = [PortableEncoder(model) for model in models]
        factors = [ItemFactors(encoder.model.items.catalogue()) for encoder in encoders]
        self.register_buffer("item_vectors", joint_factors(factors).vectors.clone())
        for encoder in encoders:
            encoder.model.items.untied = None  # the output table is in item_vectors
        self.encoders = nn.ModuleList(encoders)
        self.reads_times = any(model.config.time_bias for model in models)
        self.register_buffer("counts", counts.to(torch.float32))
        self.register_buffer("nameless", nameless)
        for position, each in enumerate(factors if len(models) > 1 else []):
            self.register_buffer(f"covariance_{position}", each.centred.T @ each.centred / each.num_items)

    def forward(
        self, histories: Tensor, lengths: Tensor, k: Tensor, times: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The numbers int64 (users, k) and scores float32 (users, k) of the best items, and vectors float32 (users, d).

        histories int64 (users, tokens): numbers of items, the oldest first, then padding of any value; lengths int64
        (users,), at most `tokens`; k int64 (), at most the number of items; times int64 (users, tokens) in seconds,
        if a model reads times. The items of a history are left out: after the others, they have a score of -inf. A
        history of length 0 gets the items with most events in the training data, with these numbers as scores.
        """
        vectors = self._vectors(histories, lengths, times)
        scores = vectors @ self.item_vectors.T
        filled = torch.arange(histories.shape[1]) < lengths[:, None]
        empty = (lengths == 0)[:, None]
        seen = torch.where(filled, histories, histories[:, :1]).masked_fill(empty, 0)
        scores = torch.where(empty, self.counts, scores.scatter(1, seen, -torch.inf))
        if self.nameless is not None:
            scores = scores.masked_fill(self.nameless, -torch.inf)
        number: Any = k.item()
        _promise(number >= 1)
        _promise(number <= self.counts.shape[0])
        best = scores.topk(number, dim=1)
        return best.indices, best.values, vectors

    def _vectors(self, histories: Tensor, lengths: Tensor, times: Tensor | None) -> Tensor:
        users: list[Tensor] = [encoder(histories, lengths, times) for encoder in self.encoders]
        if len(users) == 1:
            return users[0]
        return torch.cat([self._standardised(each, n) for n, each in enumerate(users)], dim=1) / len(users)

    def _standardised(self, users: Tensor, member: int) -> Tensor:
        """As `ItemFactors.standardised`."""
        covariance: Tensor = getattr(self, f"covariance_{member}")
        variances = ((users @ covariance) * users).sum(dim=1, keepdim=True)
        return users / variances.clamp(min=0).sqrt().clamp(min=MIN_DEVIATION)


def _promise(condition: bool) -> None:
    """What torch.export may assume of sizes that depend on data; an error where it does not hold."""
    torch._check(condition)  # type: ignore[no-untyped-call]


def _without_transforms(model: SequenceModel) -> SequenceModel:
    """The model with the impulse response of each frequency filter as a constant, in place, for ONNX."""
    for block in model.blocks:
        layers = block.local_mixing
        assert isinstance(layers, nn.ModuleList)
        for position, layer in enumerate(layers):
            if isinstance(layer, FrequencyFilter):
                layers[position] = _as_convolution(layer)
    return model


def _as_convolution(layer: FrequencyFilter) -> ShortConvolution:
    config = layer.config.model_copy(update={"conv_kernel": layer.config.max_len})
    same = ShortConvolution(config)
    same.norm = layer.norm
    response = torch.fft.irfft(torch.view_as_complex(layer.spectrum), n=config.max_len, dim=0, norm="ortho")
    same.taps = nn.Parameter(response.contiguous(), requires_grad=False)  # torch.export.save wants whole storages
    return same.eval()
