"""`virtualmle serve-model` as a process on loopback, for tests."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.quick_home import environment
from tests.waiting import until


@dataclass(frozen=True)
class Served:
    """A running endpoint."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def serving(export: Path, log: Path, *options: str) -> Iterator[Served]:
    """Serve an export on a free port until the block ends; the process writes to the file `log`."""
    command = [sys.executable, "-P", "-m", "virtualmle", "serve-model", str(export), "--port", "0", *options]
    with log.open("w+") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=environment())
        try:
            yield Served(_url(process, log), process)
        finally:
            process.kill()
            process.wait()


def _url(process: "subprocess.Popen[str]", log: Path) -> str:
    until(lambda: " at http://" in log.read_text() or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    return log.read_text().split(" at ")[-1].split()[0]
