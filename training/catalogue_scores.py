"""Scores of users over the whole catalogue, computed in blocks of users: products with the item table, then priors.

Evaluation and an exported model share this code, so that both give equal scores for equal histories.
"""

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..models.priors import MIN_DEVIATION, ScorePriors
from .ranking import ScoreBlocks, Scratch

BLOCK_SCORES = {"cpu": 3 << 19, "cuda": 1 << 27}  # scores that one thread holds at once
PANEL_ITEMS = {"cpu": 1024, "cuda": 1 << 31}  # items per product: the result of one stays in a core's own cache


class ItemFactors:
    """Item vectors (num_items, d), whose dot products with user vectors are scores; prepared once for many users."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.num_items, self.device = len(vectors), vectors.device
        self._products = {False: Scratch(), True: Scratch()}

    @property
    def block_users(self) -> int:
        """The number of users that are scored at once."""
        return max(1, BLOCK_SCORES[self.device.type] // self.num_items)

    @functools.cached_property
    def centred(self) -> Tensor:
        """The item vectors minus their mean, (num_items, d)."""
        return self.vectors - self.vectors.mean(dim=0)

    def standardised(self, users: Tensor) -> Tensor:
        """User vectors (n, d), scaled such that their dot products with `centred` are each user's z-scores.

        With c_j = item vector j - mean, the scores s . c_j have mean 0 and variance s^T (sum_j c_j c_j^T / V) s. This
        costs one (d, d) product, but no pass over all scores.
        """
        variances = ((users @ self._covariance) * users).sum(dim=1, keepdim=True)
        return users / variances.clamp_min(0).sqrt().clamp_min(MIN_DEVIATION)

    def product(self, users: Tensor, standardised: bool) -> Tensor:
        """Dot products of users (n, d) with `centred` or else `vectors`: (n, num_items), valid until the thread's next
        call with this `standardised`."""
        scores = self._products[standardised].matrix(len(users), self.num_items, self.device)
        begin = 0
        for panel in self.panels(standardised):
            end = begin + panel.shape[1]
            torch.mm(users, panel, out=scores[:, begin:end])
            begin = end
        return scores

    def panels(self, standardised: bool) -> list[Tensor]:
        """`centred` or `vectors` as `product` reads them; computed by the first call, before threads share them."""
        return self._centred_panels if standardised else self._panels

    @functools.cached_property
    def _covariance(self) -> Tensor:
        return self.centred.T @ self.centred / self.num_items

    @functools.cached_property
    def _panels(self) -> list[Tensor]:
        return _transposed_panels(self.vectors)

    @functools.cached_property
    def _centred_panels(self) -> list[Tensor]:
        return _transposed_panels(self.centred)


def _transposed_panels(vectors: Tensor) -> list[Tensor]:
    # each a contiguous (d, panel): a product with it is faster than with a view of the table
    return [panel.T.contiguous() for panel in torch.split(vectors, PANEL_ITEMS[vectors.device.type])]


def joint_factors(members: Sequence[ItemFactors]) -> ItemFactors:
    """The factors of an ensemble; for one member, that member.

    The mean of the members' z-scores is one dot product: of the members' centred item vectors side by side,
    (num_items, sum of d), with the result of `joint_users`.
    """
    if len(members) == 1:
        return members[0]
    return ItemFactors(torch.cat([member.centred for member in members], dim=1))


def joint_users(members: Sequence[ItemFactors], users: Sequence[Tensor]) -> Tensor:
    """The user vectors that belong to `joint_factors`: (n, sum of d) from those of every member, (n, d) each."""
    if len(members) == 1:
        return users[0]
    standardised = [member.standardised(vectors) for member, vectors in zip(members, users, strict=True)]
    return torch.cat(standardised, dim=1) / len(members)


def score_blocks(
    factors: ItemFactors, users: Tensor, items: Tensor, offsets: Tensor, variants: Sequence[ScorePriors | None]
) -> ScoreBlocks:
    """The scores of users (num_users, d) with each of several priors; products are shared between the variants.

    User u has the history items[offsets[u]:offsets[u + 1]]: items (num_events,) on the device of the factors, offsets
    int64 (num_users + 1,) on the CPU.
    """
    kinds = [priors is not None and priors.config.score_normalisation == "zscore" for priors in variants]
    vectors = {kind: factors.standardised(users) if kind else users for kind in set(kinds)}
    for kind in vectors:
        factors.panels(kind)
    copies = Scratch()

    def blocks(first: int, last: int) -> Iterator[Tensor]:
        bounds = offsets[first : last + 1]
        history = items[int(bounds[0]) : int(bounds[-1])]
        products = {kind: factors.product(rows[first:last], kind) for kind, rows in vectors.items()}
        for priors, kind in zip(variants, kinds, strict=True):
            scores = products[kind]
            if kinds.count(kind) > 1:
                scores = copies.matrix(last - first, factors.num_items, factors.device).copy_(scores)
            yield scores if priors is None else priors.add_to(scores, history, bounds - bounds[0], kind)

    return blocks
