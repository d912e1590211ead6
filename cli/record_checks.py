"""The check of `virtualmle doctor` that walks the audit log and compares it with everything else that is recorded."""

import os
from pathlib import Path
from typing import Literal

from ..data.wording import counted
from ..examiner.audit import AuditLog
from ..examiner.receipts import known_public_key
from ..examiner.vault import Vault
from ..tools.auditing import walk_home

Status = Literal["ok", "warn", "fail"]
NUM_SHOWN = 5


def check_records(home: Path) -> tuple[Status, str]:
    """Status and details of what does not fit in a home. Raises HomeError, MemoryStoreError."""
    vault = Vault(home)
    if not vault.directory.exists():
        return "ok", "none yet; the audit log begins with the first dataset"
    if not os.access(vault.directory, os.R_OK | os.W_OK | os.X_OK):
        return "warn", "the vault belongs to another user; run the doctor as that user to compare its records"
    found = walk_home(home)
    failures = [finding.text for finding in found if finding.level == "fail"]
    if failures:
        more = f"; and {len(failures) - NUM_SHOWN} more" if len(failures) > NUM_SHOWN else ""
        return "fail", "; ".join(failures[:NUM_SHOWN]) + more
    notes = "".join(f"; {finding.text}" for finding in found)
    return "ok", _recorded_since(vault) + notes


def _recorded_since(vault: Vault) -> str:
    entries = AuditLog(vault.directory).entries()
    if not entries:
        return "not recorded yet; the audit log begins with the next session, and adopts what is there"
    first, key = entries[0], known_public_key(vault)
    adopted = f"; {counted(first.body['sessions'], 'earlier session')} adopted" if first.kind == "adopted" else ""
    signs = f"; key of the receipts: {key}" if key else ""
    length = counted(len(entries), "entry")
    return f"{length} in the audit log, recorded from {first.at[:10]} on{adopted}{signs}"
