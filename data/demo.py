"""The bundled demo log: small, made up, the same everywhere, with the kinds of structure that real logs have.

Users belong to communities with their own part of the catalogue; inside it, items follow one another (a shampoo, then
its conditioner); a few items are far more popular than the rest; and popularity drifts, since items come up at
different times and fade. A model that learns sequences, regularises well and uses transition counts finds something.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

NUM_COMMUNITIES = 10
NUM_SUCCESSORS = 3
START, DAYS, SECONDS_PER_DAY = 1_388_534_400, 730, 86_400  # two years from 2014-01-01
FOLLOW, HOME = 0.3, 0.8  # chances that an event follows the last item, or else stays in the user's community
MIN_LENGTH, MEAN_EXTRA = 6, 5.0

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def generate_demo(num_users: int = 700, num_items: int = 260, seed: int = 2014) -> pl.DataFrame:
    """A log with columns user (String), item (String), timestamp (Int64, Unix seconds); equal seeds give equal logs."""
    rng = np.random.default_rng(seed)
    community = rng.permutation(np.arange(num_items) % NUM_COMMUNITIES)  # (num_items,)
    popularity = 1 / (1 + rng.permutation(num_items)) ** 0.8
    release = rng.uniform(-0.5, 0.9, num_items)  # in units of the whole span; negative = there from the start
    appeal = popularity * _freshness(np.arange(DAYS)[:, None] / DAYS - release)  # (days, num_items)
    successors = _successors(rng, community, popularity)
    taste = rng.integers(NUM_COMMUNITIES, size=num_users)
    lengths = MIN_LENGTH + rng.geometric(1 / MEAN_EXTRA, size=num_users) - 1
    users, items, times = [], [], []
    for user in range(num_users):
        days = np.sort((0.6 * rng.random() + 0.4 * rng.random(lengths[user])) * DAYS).astype(np.int64)  # (length,)
        history: list[int] = []
        for day in days:
            weights = appeal[day].copy()
            weights[history] = 0.0  # things are bought once
            history.append(_next_item(rng, history, weights, community == taste[user], successors))
        users += [f"u{user:04d}"] * len(history)
        items += [f"i{item:03d}" for item in history]
        times += (START + days * SECONDS_PER_DAY).tolist()
    return pl.DataFrame({"user": users, "item": items, "timestamp": times})


def _successors(rng: np.random.Generator, community: Ints, popularity: Floats) -> Ints:
    """For each item the few items that tend to come next, (num_items, NUM_SUCCESSORS), of its own community."""
    rows = []
    for item, home in enumerate(community):
        weights = popularity * (community == home)
        weights[item] = 0
        rows.append(rng.choice(len(community), NUM_SUCCESSORS, replace=False, p=weights / weights.sum()))
    return np.array(rows)


def _freshness(age: Floats) -> Floats:
    """How an item's appeal rises at its release and fades, for ages in units of the whole span."""
    return np.where(age < 0, 0.02, 0.15 + np.exp(-np.maximum(age, 0) / 0.4))


def _next_item(
    rng: np.random.Generator, history: list[int], weights: Floats, at_home: npt.NDArray[np.bool_], successors: Ints
) -> int:
    """One draw: a successor of the last item, else an item of the user's community, else any item."""
    if history and rng.random() < FOLLOW:
        for item in successors[history[-1]]:
            if weights[item] > 0 and rng.random() < 0.6:
                return int(item)
    inside = weights * at_home
    if rng.random() < HOME and inside.any():  # a long history may have used up the community
        weights = inside
    total = np.cumsum(weights)
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))
