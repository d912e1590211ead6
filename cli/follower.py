"""The process that tracks a session while `tune` runs it.

It is a process of its own, `virtualmle track`, so that neither a slow tracker nor a large library delays the session.
Its standard input is a pipe from here: when it ends, in whatever way this process does, the tracker sends what is
missing and exits.
"""

import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from ..tracking.targets import Target

LAST_SECONDS = 30.0  # for the last figures; a tracker that is down gives up sooner


class Follower:
    """Tracks one session; `start` it once its id is known. Lines of the process go to `say`."""

    def __init__(self, home: Path, targets: Sequence[Target], say: Callable[[str], None]) -> None:
        self._home = home
        self._targets = targets
        self._say = say
        self._process: subprocess.Popen[str] | None = None
        self._session = ""

    def __enter__(self) -> "Follower":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the process send the last figures; if it cannot, say how to complete them."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            complete = self._process.wait(LAST_SECONDS) == 0
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            complete = False
        self._reader.join(1.0)
        if not complete:
            self._say(f"tracking is not complete; complete it with: {self._command}")

    def start(self, session: str) -> None:
        """Start the process unless there is nothing to track to, or it runs already."""
        if self._process is not None or not self._targets:
            return
        self._session = session
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", *self._words, "--until-eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C ends `tune`, and this process ends after it
        )
        self._reader = threading.Thread(target=self._forward, args=(self._process,), daemon=True)
        self._reader.start()

    @property
    def _words(self) -> list[str]:
        options = [word for target in self._targets for word in (f"--{target.kind}", target.address)]
        return ["virtualmle", "track", self._session, *options, "--home", str(self._home)]

    @property
    def _command(self) -> str:
        return shlex.join(self._words)

    def _forward(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("tracking: "):
                self._say(line.removeprefix("tracking: ").rstrip())
