"""Where the vectors of new items start: at those of their neighbours in the histories that contain them.

    e_new = norm * m / |m|,  m = sum_n w_n e_n / sum_n w_n

over the items n that are at most STEPS events away in the same history, w_n = 1 / distance, summed over all events;
`norm` is the same mean of their norms, because a mean of vectors is shorter than these. An item whose neighbours are
all new starts from them in the next round. An item without any neighbour starts at the mean of the catalogue.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STEPS = 3


def extended_table(table: Tensor, items: NDArray[np.int64], offsets: NDArray[np.int64], num_items: int) -> Tensor:
    """`table` (old_items, d) with rows for the items old_items..num_items-1: (num_items, d).

    Histories: items (num_events,) of the larger catalogue, offsets (num_users + 1,).
    """
    old_items = len(table)
    rows = torch.cat((table, table.mean(dim=0).expand(num_items - old_items, -1)))
    pairs = _neighbours(items, offsets)
    known = torch.arange(num_items) < old_items
    while True:
        first, second, weights = pairs
        useful = ~known[first] & known[second]
        if not useful.any():
            return rows
        found = _means(rows, first[useful], second[useful], weights[useful])
        rows[found[0]] = found[1]
        known[found[0]] = True


def _means(rows: Tensor, items: Tensor, neighbours: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct items, and the vectors that their neighbours give them."""
    distinct, owners = torch.unique(items, return_inverse=True)
    totals = torch.zeros(len(distinct)).index_add_(0, owners, weights)
    weighted = rows[neighbours] * weights[:, None]
    means = torch.zeros(len(distinct), rows.shape[1]).index_add_(0, owners, weighted) / totals[:, None]
    norms = torch.zeros(len(distinct)).index_add_(0, owners, rows[neighbours].norm(dim=1) * weights) / totals
    return distinct, torch.nn.functional.normalize(means, dim=1) * norms[:, None]


def _neighbours(items: NDArray[np.int64], offsets: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of different items at most STEPS apart, in both orders: two tensors of items, and their weights."""
    ends = np.repeat(offsets[1:], np.diff(offsets))
    firsts, seconds, weights = [], [], []
    for step in range(1, STEPS + 1):
        events = np.flatnonzero(np.arange(len(items)) + step < ends)
        left, right = items[events], items[events + step]
        apart = left != right
        firsts += [left[apart], right[apart]]
        seconds += [right[apart], left[apart]]
        weights += [np.full(int(apart.sum()) * 2, 1 / step, np.float32)]
    return (
        torch.from_numpy(np.concatenate(firsts)),
        torch.from_numpy(np.concatenate(seconds)),
        torch.from_numpy(np.concatenate(weights)),
    )
