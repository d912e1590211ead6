"""The entries of the audit log that the examiner's processes write: before a look, and before a refit.

The entry comes before the row in the look ledger. A process that is killed between the two leaves an entry without a
row, and the next attempt adds another entry and the row. A row that is missing although the session has a result was
deleted.
"""

from pathlib import Path

from .audit import AuditLog
from .entries import Draft


def log_look(vault_directory: Path, session: str, trial: str, dataset: str, dataset_id: str) -> None:
    """Record that the look of `session` starts, or that it was taken elsewhere. Raises SealError, HomeError."""
    body = {"trial": trial, "dataset": dataset, "dataset_id": dataset_id}
    AuditLog(vault_directory).append(Draft(kind="look", session=session, body=body))


def log_refit(vault_directory: Path, session: str, dataset: str, dataset_id: str) -> None:
    """Record that a model of `session` is trained on all events. Raises SealError, HomeError."""
    body = {"dataset": dataset, "dataset_id": dataset_id}
    AuditLog(vault_directory).append(Draft(kind="refit", session=session, body=body))
