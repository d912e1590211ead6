"""The interface between compare.py and the engines: tasks and answers as files in one folder. Needs numpy only."""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WIDTH, DEPTH, HEADS, MAX_LEN, LR = 64, 2, 2, 50, 1e-3
TOP = 10


@dataclass
class Task:
    """A log, the training settings, and the folder for the answer."""

    folder: Path
    items: np.ndarray  # (num_events,) train events of all users, oldest first
    offsets: np.ndarray  # (num_users + 1,)
    valid_items: np.ndarray  # (num_users,)
    num_items: int
    loss: str  # softmax | sampled | shared (ours only)
    bfloat16: bool  # ours: the products of the full softmax; RecTools: autocasting ("bf16-mixed")
    epochs: int
    threads: int
    batch_size: int
    num_negatives: int

    @property
    def users(self) -> np.ndarray:
        """(num_events,): the user of each event."""
        return np.repeat(np.arange(len(self.valid_items)), np.diff(self.offsets))


def read_task() -> Task:
    """The task in the folder that the command line names."""
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "task.json").read_text())
    arrays = np.load(folder.parent / "log.npz")
    return Task(folder, arrays["items"], arrays["offsets"], arrays["valid_items"], **settings)


def timed(action: Callable[[], object]) -> tuple[float, object]:
    """The seconds that the action took, and its result."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def answer(task: Task, fit_seconds: float, evaluate_seconds: float, top: np.ndarray, versions: dict[str, str]) -> None:
    """Write the engine's answer; top (num_users, 10) item ids, best first, padded with -1."""
    np.save(task.folder / "top.npy", top)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    record = {
        "epoch_seconds": fit_seconds / task.epochs,
        "evaluate_seconds": evaluate_seconds,
        "peak_mb": peak,
        "versions": versions,
    }
    (task.folder / "answer.json").write_text(json.dumps(record))


def without_history(task: Task, ranked: np.ndarray) -> np.ndarray:
    """(num_users, 10): the first ten items of each row of `ranked` that are not in the user's history."""
    top = np.full((len(ranked), TOP), -1)
    for user, row in enumerate(ranked):
        history = task.items[task.offsets[user] : task.offsets[user + 1]]
        unseen = row[~np.isin(row, history)][:TOP]
        top[user, : len(unseen)] = unseen
    return top
