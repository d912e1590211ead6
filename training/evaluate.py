"""Evaluation of a model by full ranking. The caller passes histories and targets; this module knows no splits.

The model sees the last `max_len` events of a history; the whole history is masked out of the ranking.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.histories import Histories
from ..data.prepared import PreparedDataset
from ..models.batch import keep_last, make_batch
from ..models.config import TrialConfig
from ..models.priors import ScorePriors
from ..models.sequence_model import SequenceModel
from .catalogue_scores import ItemFactors, score_blocks
from .errors import TrainingError
from .metrics import metrics_from_ranks
from .ranking import Ranks, rank_variants

ENCODE_USERS = {"cpu": 1024, "cuda": 8192}  # users encoded at once
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
    check_catalogue(model, num_items)
    users = states if states is not None else encode_users(model, config, histories)
    factors = ItemFactors(model.items.catalogue())
    return rank_by_vectors(factors, model.items.scaled(users), histories, targets, variants)


def check_catalogue(model: SequenceModel, num_items: int) -> None:
    """Raise TrainingError if the model does not score a catalogue of `num_items` items."""
    if model.num_items != num_items:
        raise TrainingError(f"the model scores {model.num_items} items, the dataset has {num_items}: another dataset")


@torch.inference_mode()
def rank_by_vectors(
    factors: ItemFactors,
    users: Tensor,
    histories: Histories,
    targets: NDArray[np.int32],
    variants: Sequence[ScorePriors | None],
) -> list[Ranks]:
    """Rank each user's target by the products of `users` (num_users, d) and `factors`, with each of several priors."""
    items = torch.tensor(np.asarray(histories.items), device=factors.device)
    offsets = torch.tensor(np.asarray(histories.offsets))
    wanted = torch.tensor(np.asarray(targets), device=factors.device)
    blocks = score_blocks(factors, users, items, offsets, variants)
    return rank_variants(blocks, items, offsets, wanted, factors.block_users)


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
