"""Ensembles: the models of several finished trials, scored together. Nothing is trained here.

    s(u, j) = 1/M sum_m z_m(u, j)

z_m is the score of member m without priors, standardised per user over the whole catalogue. The mean of the z-scores is
one product of concatenated vectors (`catalogue_scores.joint_factors`). An ensemble is therefore ranked as one model of
the summed width is: in blocks of users, with the score priors of its own configuration.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.hashing import sha256_of
from ..data.histories import Histories
from ..models.build import num_parameters
from ..models.priors import ScorePriors
from .catalogue_scores import ItemFactors, joint_factors, joint_users
from .checkpoint import LoadedModel, load_checkpoint
from .evaluate import check_catalogue, encode_users, rank_by_vectors
from .member_files import check_checkpoint
from .ranking import Ranks
from .rescoring import load_user_states
from .spec import USERS, NamedModel


def load_members(members: Sequence[NamedModel], device: torch.device | str) -> list[LoadedModel]:
    """The models of the members. TrainingError if a checkpoint is missing or is not the one that was recorded."""
    found = []
    for member in members:
        model, config = load_checkpoint(check_checkpoint(member))
        found.append(LoadedModel(model.to(device), config))
    return found


@torch.inference_mode()
def rank_ensemble(
    members: Sequence[LoadedModel],
    histories: Histories,
    targets: NDArray[np.int32],
    variants: Sequence[ScorePriors | None],
    num_items: int,
    states: Sequence[Tensor | None] = (),
) -> list[Ranks]:
    """Rank each user's target by the mean of the members' z-scores, with each of several priors.

    states: each member's states after these histories (`evaluate.encode_users`), where the caller has them. Other
    arguments and errors as of `evaluate_variants`.
    """
    factors, users = [], []
    for (model, config), given in zip(members, states or [None] * len(members), strict=True):
        check_catalogue(model, num_items)
        encoded = encode_users(model, config, histories) if given is None else given
        factors.append(ItemFactors(model.items.catalogue()))
        users.append(model.items.scaled(encoded))
    return rank_by_vectors(joint_factors(factors), joint_users(factors, users), histories, targets, variants)


def stored_states(member: NamedModel, loaded: LoadedModel, num_users: int) -> Tensor | None:
    """The states that the member's trial scored on validation; None if the file is not the one that was recorded."""
    path = Path(member.directory) / USERS
    if not path.exists() or sha256_of(path) != member.files.get(USERS):
        return None
    states = load_user_states(path.parent, num_users, loaded.config.hidden_dim)
    return None if states is None else states.to(loaded.model.item_table().device)


def total_parameters(members: Sequence[LoadedModel]) -> int:
    """The parameters of all members, which an ensemble holds in memory."""
    return sum(num_parameters(member.model) for member in members)
