"""Ensembles: the models of several finished trials, scored together. Nothing is trained here.

    s(u, j) = 1/M sum_m z_m(u, j)

z_m is the score of member m without priors, standardised per user over the whole catalogue. A z-score is the product of
a user's and an item's vector (`evaluate.standardised`), and the mean of several z-scores is the product of their
concatenated vectors. An ensemble is therefore ranked as one model of the summed width is: in blocks of users, with the
score priors of its own configuration.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.hashing import sha256_of
from ..models.build import num_parameters
from ..models.config import TrialConfig
from ..models.sequence_model import SequenceModel
from .checkpoint import load_checkpoint
from .evaluate import Histories, Vectors, score_vectors, standardised
from .member_files import check_checkpoint
from .rescoring import load_user_states
from .spec import USERS, EnsembleMember


class LoadedMember(NamedTuple):
    """The model of a member on the device that scores it, and its configuration."""

    model: SequenceModel
    config: TrialConfig


def load_members(members: Sequence[EnsembleMember], device: torch.device | str) -> list[LoadedMember]:
    """The models of the members. TrainingError if a checkpoint is missing or is not the one that was recorded."""
    found = []
    for member in members:
        model, config = load_checkpoint(check_checkpoint(member))
        found.append(LoadedMember(model.to(device), config))
    return found


@torch.inference_mode()
def ensemble_vectors(
    members: Sequence[LoadedMember], histories: Histories, num_items: int, states: Sequence[Tensor | None] = ()
) -> Vectors:
    """The vectors whose products are the mean of the members' z-scores; their width is the sum of the members' widths.

    states: each member's states after these histories (`evaluate.encode_users`), where the caller has them.
    TrainingError as of `evaluate_targets`.
    """
    given = states or [None] * len(members)
    parts = [
        standardised(score_vectors(member.model, member.config, histories, num_items, own))
        for member, own in zip(members, given, strict=True)
    ]
    users = torch.cat([part.users for part in parts], dim=1).div_(len(parts))
    return Vectors(users, torch.cat([part.items for part in parts], dim=1))


def stored_states(member: EnsembleMember, loaded: LoadedMember, num_users: int) -> Tensor | None:
    """The states that the member's trial scored on validation; None if the file is not the one that was recorded."""
    path = Path(member.directory) / USERS
    if not path.exists() or sha256_of(path) != member.files.get(USERS):
        return None
    states = load_user_states(path.parent, num_users, loaded.config.hidden_dim)
    return None if states is None else states.to(loaded.model.item_table().device)


def total_parameters(members: Sequence[LoadedMember]) -> int:
    """The parameters of all members, which an ensemble holds in memory."""
    return sum(num_parameters(member.model) for member in members)
