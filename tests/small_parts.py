"""Parts that tests of ensembles and of soft targets share: homes with warm workers, and a train part in memory."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.trials.warm import retire

TABLES = [
    pytest.param({"scores": "dot", "temperature": 1.0, "tie_embeddings": False}, id="dot-untied"),
    pytest.param({"scores": "cosine", "temperature": 0.1, "tie_embeddings": True}, id="cosine-tied"),
]
"""Ways in which a model scores items."""


def opened(home: Path, **settings: Any) -> Workspace:
    """A workspace of up to nine sessions without reflections, whose workers stay warm."""
    fixed: dict[str, Any] = {"threads": 1, "with_reflection": False, "keep_warm": 60, "max_sessions": 9}
    return Workspace.open(home, settings=Settings(**fixed, **settings))


def closed(ws: Workspace) -> None:
    """Close the workspace and end its warm workers."""
    for session in ws.memory.sessions.all():
        retire(ws.inbox(session.id))
    ws.close()


def train_part(histories: Sequence[Sequence[int]], num_items: int) -> Any:
    """What training reads of a dataset with these histories, one event an hour."""
    offsets = np.cumsum([0, *map(len, histories)])
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    times = np.arange(len(items), dtype=np.int64) * 3600
    return SimpleNamespace(
        num_items=num_items, items=items, offsets=offsets, timestamps=times, dataset_id="d", num_users=len(histories)
    )
