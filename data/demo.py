"""The bundled demo log: small, synthetic, identical on every machine, with the kinds of structure that real logs have.

Each user belongs to a community, which prefers its own part of the catalogue. Within a community, items follow one
another (a shampoo, then its conditioner). A few items are far more popular than the rest. Popularity drifts, because
items are released at different times and then fade. Sequence modelling, regularisation and transition counts all help.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

NUM_COMMUNITIES = 10
NUM_SUCCESSORS = 3
START, DAYS, SECONDS_PER_DAY = 1_388_534_400, 730, 86_400  # two years from 2014-01-01
# Probability that a successor of the last item is tried first; probability that any other item is drawn from the
# user's community
FOLLOW, STAY = 0.3, 0.8
MIN_LENGTH, MEAN_EXTRA = 6, 5.0

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def generate_demo(num_users: int = 700, num_items: int = 260, seed: int = 2014) -> pl.DataFrame:
    """A log with columns user (String), item (String), timestamp (Int64, Unix seconds); equal seeds give equal logs."""
    rng = np.random.default_rng(seed)
    community = rng.permutation(np.arange(num_items) % NUM_COMMUNITIES)  # (num_items,)
    popularity = 1 / (1 + rng.permutation(num_items)) ** 0.8
    release = rng.uniform(-0.5, 0.9, num_items)  # as a fraction of the time span; negative = available from the start
    appeal = popularity * _freshness(np.arange(DAYS)[:, None] / DAYS - release)  # (days, num_items)
    successors = _successors(rng, community, popularity)
    user_community = rng.integers(NUM_COMMUNITIES, size=num_users)
    lengths = MIN_LENGTH + rng.geometric(1 / MEAN_EXTRA, size=num_users) - 1
    users, items, times = [], [], []
    for user in range(num_users):
        days = np.sort((0.6 * rng.random() + 0.4 * rng.random(lengths[user])) * DAYS).astype(np.int64)  # (length,)
        history: list[int] = []
        for day in days:
            weights = appeal[day].copy()
            weights[history] = 0.0  # nobody buys the same item twice
            history.append(_next_item(rng, history, weights, community == user_community[user], successors))
        users += [f"u{user:04d}"] * len(history)
        items += [f"i{item:03d}" for item in history]
        times += (START + days * SECONDS_PER_DAY).tolist()
    return pl.DataFrame({"user": users, "item": items, "timestamp": times})


def _successors(rng: np.random.Generator, community: Ints, popularity: Floats) -> Ints:
    """The items that tend to follow each item, drawn from its own community; (num_items, NUM_SUCCESSORS)."""
    rows = []
    for item, item_community in enumerate(community):
        weights = popularity * (community == item_community)
        weights[item] = 0
        rows.append(rng.choice(len(community), NUM_SUCCESSORS, replace=False, p=weights / weights.sum()))
    return np.array(rows)


def _freshness(age: Floats) -> Floats:
    """The factor of an item's appeal that rises at the release and then fades; `age` is a fraction of the time span."""
    return np.where(age < 0, 0.02, 0.15 + np.exp(-np.maximum(age, 0) / 0.4))


def _next_item(
    rng: np.random.Generator, history: list[int], weights: Floats, in_community: npt.NDArray[np.bool_], successors: Ints
) -> int:
    """Draw one item: a successor of the last item, else an item of the user's community, else any item."""
    if history and rng.random() < FOLLOW:
        for item in successors[history[-1]]:
            if weights[item] > 0 and rng.random() < 0.6:
                return int(item)
    inside = weights * in_community
    if rng.random() < STAY and inside.any():  # a long history may contain every item of the community
        weights = inside
    total = np.cumsum(weights)
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))
