"""The real server over a temporary home: trials of a second on the demo, ten per session."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtualmle.cli.attacks.page import PAGE

TRIALS = 10
START_SECONDS = 180  # a second on a free core
STOP_SECONDS = 30


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A new home with the quick protocol."""
    with tempfile.TemporaryDirectory(prefix="virtualmle-interop-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "SANDBOX.md").write_text(PAGE.replace("# Scratch", "# Quick"), encoding="utf-8")
        yield home


def stdio_command(home: Path) -> list[str]:
    """The command with which a client starts the server over stdio."""
    program = [sys.executable, "-P", "-m", "virtualmle", "serve", "--home", str(home)]
    return [*program, "--trials", str(TRIALS), "--threads", "1", "--keep-warm", "20"]


@contextmanager
def http_server(home: Path) -> Iterator[str]:
    """The URL of the server over HTTP, on a free port of this machine; it is stopped at the end."""
    log = home.parent / "server.log"
    with log.open("w", encoding="utf-8") as stream:
        command = [*stdio_command(home), "--transport", "http", "--port", "0"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stream)
    try:
        yield _announced(process, log)
    finally:
        process.terminate()
        process.wait(timeout=STOP_SECONDS)


def _announced(process: subprocess.Popen[bytes], log: Path) -> str:
    """The URL that the server writes to its log once it listens."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"serving MCP at (http\S+)", log.read_text(encoding="utf-8"))
        if found:
            return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8')[-2000:]}")
