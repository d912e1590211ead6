"""What the examiner checks before it opens a seal: that dataset and models are those that this home has signed."""

from collections.abc import Sequence
from pathlib import Path

from ..data.dataset_signature import check_dataset
from ..data.errors import DataError, SealError, TrialError
from ..training.signature import check_trial
from ..training.spec import CHECKPOINT, RESULT
from .vault import Vault


def check_signatures(vault: Vault, dataset_dir: Path, dataset_id: str, session: str, models: Sequence[Path]) -> None:
    """SealError unless manifest, sealed test split and what is read of the models are as they were signed.

    models: directories of finished trials of `session` on the dataset with this id. The members of an ensemble have
    their hashes in its spec, which is signed. Only the home that was tuned has the key: a choice for a holder elsewhere
    is checked before it is packed.
    """
    try:
        check_dataset(dataset_dir, vault.mac_key())
        key, names = vault.session_key(session), (RESULT, CHECKPOINT)
        for directory in models:
            check_trial(directory, key, session, directory.name, dataset_id=dataset_id, names=names)
    except (DataError, TrialError) as error:
        raise SealError(f"the test set stays sealed: {error}") from None
