"""The learning curve of a file with a training state, read from its header: without torch, and without its tensors."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .stopping import Point

METADATA = "virtualmle_training"


def read_curve(path: Path) -> list[Point]:
    """The evaluated epochs of the state in a file; empty if there is none or it cannot be read."""
    try:
        with safe_open(path, framework="np") as file:
            records = json.loads((file.metadata() or {})[METADATA])["curve"]
        return [(int(record["epoch"]), float(record["ndcg10"])) for record in records]
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        return []
