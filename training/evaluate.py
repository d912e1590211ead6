"""Evaluation of a model by full ranking. The caller passes histories and targets; this module knows no splits.

The model sees the last `max_len` events of a history; the whole history is masked out of the ranking.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.histories import Histories
from ..data.prepared import PreparedDataset
from ..models.batch import keep_last, make_batch
from ..models.config import TrialConfig
from ..models.priors import MIN_DEVIATION, ScorePriors
from ..models.sequence_model import SequenceModel
from .errors import TrainingError
from .metrics import metrics_from_ranks
from .ranking import Ranks, Scratch, rank_variants

ENCODE_USERS = {"cpu": 1024, "cuda": 8192}  # users encoded at once
BLOCK_SCORES = {"cpu": 3 << 19, "cuda": 1 << 27}  # scores that one thread holds at once
PANEL_ITEMS = {"cpu": 1024, "cuda": 1 << 31}  # items per product: the result of one stays in a core's own cache
TRAIN_SAMPLE = 1000


def evaluate_validation(
    model: SequenceModel, dataset: PreparedDataset, config: TrialConfig, priors: ScorePriors | None
) -> Ranks:
    """Ranks int32 (num_ranked,) of the validation targets after their histories, and the number of tied users."""
    return evaluate_targets(model, config, train_histories(dataset), dataset.valid_items, priors, dataset.num_items)


def train_histories(dataset: PreparedDataset) -> Histories:
    """The train events of every user who has a validation target, in the order of `valid_items`."""
    return dataset.validation_histories()


@torch.inference_mode()
def evaluate_targets(
    model: SequenceModel,
    config: TrialConfig,
    histories: Histories,
    targets: NDArray[np.int32],
    priors: ScorePriors | None,
    num_items: int,
    states: Tensor | None = None,
) -> Ranks:
    """Rank each user's target (num_users,) after the user's history: ranks int32 (num_users,), number of tied users.

    states: the result of `encode_users` for the same histories, if the caller has it. Runs on the model's device and
    leaves the model in evaluation mode. TrainingError if a score is NaN or infinite, a history is empty, or the model
    does not score a catalogue of `num_items` items.
    """
    return evaluate_variants(model, config, histories, targets, [priors], num_items, states)[0]


@torch.inference_mode()
def evaluate_variants(
    model: SequenceModel,
    config: TrialConfig,
    histories: Histories,
    targets: NDArray[np.int32],
    variants: Sequence[ScorePriors | None],
    num_items: int,
    states: Tensor | None = None,
) -> list[Ranks]:
    """`evaluate_targets` for several priors over one model, with equal bits, but with one product per block of users.

    Of `config`, only the knobs that training depends on are read; each of `variants` has its own scoring knobs.
    """
    if model.num_items != num_items:
        raise TrainingError(f"the model scores {model.num_items} items, the dataset has {num_items}: another dataset")
    device = model.item_table().device
    users = states if states is not None else encode_users(model, config, histories)
    items = torch.tensor(np.asarray(histories.items), device=device)
    offsets = torch.tensor(np.asarray(histories.offsets))

    plain = model.items.scaled(users), model.items.catalogue()
    kinds = [priors is not None and priors.config.score_normalisation == "zscore" for priors in variants]
    factors = {kind: _Factors(*(_standardised(*plain) if kind else plain)) for kind in set(kinds)}
    copies = Scratch()

    def score_blocks(first: int, last: int) -> Iterator[Tensor]:
        bounds = offsets[first : last + 1]
        history = items[int(bounds[0]) : int(bounds[-1])]
        products = {kind: factor.product(first, last) for kind, factor in factors.items()}
        for priors, kind in zip(variants, kinds, strict=True):
            scores = products[kind]
            if len(variants) > 1:
                scores = copies.matrix(last - first, num_items, device).copy_(scores)
            yield scores if priors is None else priors.add_to(scores, history, bounds - bounds[0], kind)

    block_users = max(1, BLOCK_SCORES[device.type] // num_items)
    return rank_variants(score_blocks, items, offsets, torch.tensor(np.asarray(targets), device=device), block_users)


class _Factors:
    """States (num_users, d) and table (num_items, d), whose product is computed in blocks of users."""

    def __init__(self, states: Tensor, table: Tensor) -> None:
        self.states = states
        # each a contiguous (d, panel): a product with it is faster than with a view of the table
        self.panels = [panel.T.contiguous() for panel in torch.split(table, PANEL_ITEMS[table.device.type])]
        self.num_items, self.products = len(table), Scratch()

    def product(self, first: int, last: int) -> Tensor:
        """The scores of users first..last-1, (last - first, num_items), valid until the thread's next call."""
        states = self.states[first:last]
        scores = self.products.matrix(last - first, self.num_items, states.device)
        begin = 0
        for panel in self.panels:
            end = begin + panel.shape[1]
            torch.mm(states, panel, out=scores[:, begin:end])
            begin = end
        return scores


def _standardised(states: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """States and table whose products are each user's z-scores; costs one (d, d) product, but no pass over all scores.

    With c_j = item vector j - mean, the scores s . c_j have mean 0 and variance s^T (sum_j c_j c_j^T / V) s.
    """
    centred = table - table.mean(dim=0)
    variances = ((states @ (centred.T @ centred / len(table))) * states).sum(dim=1, keepdim=True)
    return states / variances.clamp_min(0).sqrt().clamp_min(MIN_DEVIATION), centred


@torch.inference_mode()
def encode_users(model: SequenceModel, config: TrialConfig, histories: Histories) -> Tensor:
    """The state after the last event of each history, (num_users, hidden_dim) on the model's device.

    Leaves the model in evaluation mode. TrainingError if a history is empty.
    """
    model.eval()
    device = model.item_table().device
    offsets = torch.tensor(np.asarray(histories.offsets))
    if len(offsets) > 1 and int(offsets.diff().min()) < 1:
        raise TrainingError("a history needs at least one event; at least one user has none")
    index, bounds = keep_last(offsets, config.max_len)
    recent = torch.tensor(np.asarray(histories.items), device=device)[index.to(device)].long()
    times = None
    if config.time_bias and histories.times is not None:
        times = torch.tensor(np.asarray(histories.times))[index].to(device)
    states = [recent.new_empty((0, config.hidden_dim), dtype=torch.float32)]
    users = ENCODE_USERS[device.type]
    for first in range(0, len(bounds) - 1, users):
        block = bounds[first : first + users + 1]
        tokens = slice(int(block[0]), int(block[-1]))
        batch = make_batch(recent[tokens], block - block[0], config, None if times is None else times[tokens])
        states.append(model(batch)[batch.last_tokens()])
    return torch.cat(states)


def train_sample_ndcg(model: SequenceModel, dataset: PreparedDataset, config: TrialConfig) -> float:
    """NDCG@10 of the bare model on the last train item of up to 1,000 users, the same users in all trials of a dataset.

    The gap to validation NDCG@10 measures overfitting. Score priors are left out: their counts include these items.
    """
    lengths = np.diff(dataset.offsets)
    users = np.flatnonzero(lengths > 1)
    users = np.sort(np.random.default_rng(0).permutation(users)[:TRAIN_SAMPLE])
    lengths = lengths[users] - 1
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    events = np.arange(offsets[-1]) + np.repeat(dataset.offsets[users] - offsets[:-1], lengths)
    targets = dataset.items[dataset.offsets[users + 1] - 1]
    histories = Histories(dataset.items[events], offsets, dataset.timestamps[events])
    ranks, _ = evaluate_targets(model, config, histories, targets, None, dataset.num_items)
    return metrics_from_ranks(ranks)["ndcg@10"]
