"""What the audit log records of a session and of a trial, as plain values: the same for recording and for checking.

The names are part of the format: a digest in an old entry is computed from them. Add a field only together with
another name for the whole digest.
"""

import hashlib
from pathlib import Path
from typing import Any

from ..data.commitment import parted
from ..data.errors import DataError
from ..data.hashing import sha256_of
from ..data.prepared import MANIFEST, SEALED, read_manifest
from ..examiner.entries import digest_of
from ..memory.records import SessionRecord, TrialRecord
from ..training.spec import CHECKPOINT, RANKS, RESULT, SWEPT_RANKS

TRIAL = (
    "handle", "base", "changes", "config", "config_hash", "train_hash", "repetition", "repeats",
)  # fmt: skip
OUTCOME = (
    "status", "verdict", "reason", "metrics", "ndcg_se", "incumbent_before", "delta", "delta_se", "z", "base_delta",
    "base_delta_se", "curve", "details", "parameters", "train_seconds", "wall_seconds",
)  # fmt: skip
FILES = (RESULT, RANKS, SWEPT_RANKS)


def session_facts(session: SessionRecord) -> dict[str, Any]:
    """What never changes after a session was opened."""
    return {
        "dataset": session.dataset,
        "dataset_id": session.dataset_id,
        "backbone": session.backbone,
        "seed": session.seed,
        "protocol": hashlib.sha256(session.protocol_text.encode()).hexdigest(),
        "with_reflection": session.with_reflection,
        "with_memory": session.with_memory,
        "memory_from": session.memory_from,
        "replay": session.replay.get("digest"),
    }


def budget_of(session: SessionRecord) -> dict[str, Any]:
    """What only an extension changes."""
    return {"trials": session.max_trials, "seconds": session.max_train_seconds}


def trial_digest(trial: TrialRecord) -> str:
    """The digest of everything that memory.db has of a trial that has ended; empty while it runs."""
    if trial.outcome is None:
        return ""
    facts = {name: getattr(trial, name) for name in TRIAL} | {name: getattr(trial.outcome, name) for name in OUTCOME}
    facts["sweep"] = trial.sweep.settings if trial.sweep else None
    return digest_of(facts)


def ndcg10_of(trial: TrialRecord) -> float | None:
    """Validation NDCG@10 of a finished trial."""
    return trial.outcome.metrics.get("ndcg@10") if trial.outcome else None


def file_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of the files that a verdict rests on, as far as they exist."""
    return {name: sha256_of(directory / name) for name in FILES if (directory / name).is_file()}


def checkpoint_hash(directory: Path) -> str | None:
    """SHA-256 of a trial's checkpoint; None for an ensemble, whose specification names those of its members."""
    path = directory / CHECKPOINT
    return sha256_of(path) if path.is_file() else None


def dataset_facts(directory: Path) -> dict[str, Any]:
    """What identifies a prepared dataset, and how it was prepared. Raises DataError if it is damaged."""
    manifest = read_manifest(directory)
    try:
        sealed = (directory / SEALED).read_bytes()
    except OSError as error:
        raise DataError(f"{str(directory / SEALED)!r} cannot be read ({error.strerror}); register it again") from None
    fields = manifest.model_dump(mode="json")
    return {
        "dataset": manifest.name,
        "dataset_id": manifest.dataset_id,
        "commitment": parted(sealed)[0],
        "seal": hashlib.sha256(sealed).hexdigest(),
        "manifest": sha256_of(directory / MANIFEST),
        "options": fields["options"],
        "columns": fields["columns"],
    }
