"""The entries of the audit log that the examiner's processes write: before a look, and before a refit.

The entry comes before the row in the look ledger. A process that is killed between the two leaves an entry without a
row, and the next attempt adds another entry and the row. A row that is missing although the session has a result was
deleted.
"""

from pathlib import Path

from ..data.prepared import PreparedDataset
from .audit import AuditLog
from .entries import Draft


def log_look(vault_directory: Path, session: str, trial: str, dataset: PreparedDataset) -> None:
    """Record that the look of `session` starts. Raises SealError, HomeError."""
    AuditLog(vault_directory).append(Draft(kind="look", session=session, body={"trial": trial, **_named(dataset)}))


def log_refit(vault_directory: Path, session: str, dataset: PreparedDataset) -> None:
    """Record that a model of `session` is trained on all events. Raises SealError, HomeError."""
    AuditLog(vault_directory).append(Draft(kind="refit", session=session, body=_named(dataset)))


def _named(dataset: PreparedDataset) -> dict[str, str]:
    return {"dataset": dataset.name, "dataset_id": dataset.dataset_id}
