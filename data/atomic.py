"""Atomic file writes: a reader sees the old file or the whole new one, also after a kill or a power cut."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes, mode: int = 0o644, *, replace: bool = True) -> None:
    """Replace `path` by `content`: written beside it, synced, then renamed over it.

    Without `replace` the path has to be new, else FileExistsError.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # fails where there is one, and is whole from its first moment
            os.unlink(temporary)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Replace `path` by `value` as JSON; NaN and infinities are refused (ValueError)."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(), mode)
