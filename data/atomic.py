"""Atomic file writes: a reader sees the complete old or the complete new file, even after a kill or a power cut."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes, mode: int = 0o644, *, replace: bool = True) -> None:
    """Replace the file `path` by `content`: write a temporary file beside it, sync it, and rename it over `path`.

    With `replace=False`, raises FileExistsError if `path` exists.
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
            os.link(temporary, path)  # atomic as well, and fails if `path` exists
            os.unlink(temporary)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Replace the file `path` by `value` as JSON. Raises ValueError for NaN and infinities."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode(), mode)
