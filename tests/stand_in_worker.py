"""A worker without training, for tests of trials as processes: it performs the action in spec.config["do"]."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from virtualmle.training.spec import (
    PROGRESS,
    RESULT,
    TrialProgress,
    TrialResult,
    read_spec,
    write_model,
)
from virtualmle.training.trial_lock import OWN_LOCK


def main(directory: Path) -> None:
    """Simulate one trial in `directory`."""
    OWN_LOCK.keep()
    spec = read_spec(directory)
    action = spec.config["do"]
    if action == "ignore SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if action == "start a child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (directory / "child.txt").write_text(str(child.pid))
    if action == "fail on SIGTERM":
        signal.signal(signal.SIGTERM, lambda *_: end(directory, "failed", "ended by SIGTERM"))
    write_model(directory / PROGRESS, TrialProgress(stage="training", epoch=1, epochs=2))
    if action == "finish":
        end(directory, "finished")
    if action == "fail":
        end(directory, "failed", "the loss is not a number at epoch 1")
    if action == "raise":
        raise RuntimeError("no \x1b[31mmemory\x1b[0m left")
    threading.Event().wait(600)


def end(directory: Path, status: str, cause: str | None = None) -> None:
    """Write the result and exit."""
    metrics = {"ndcg@10": 0.5} if status == "finished" else {}
    write_model(directory / RESULT, TrialResult(status=status, cause=cause, metrics=metrics, wall_seconds=1.5))
    print(os.environ.get("PYTHONSAFEPATH"), sys.stdin.read())
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
