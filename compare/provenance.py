"""Where figures come from: the date, the commit, the processor and the versions that a record of them states."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__

PACKAGES = ("torch", "numpy", "polars")


def machine() -> dict[str, Any]:
    """The date, the commit, the processor and its cores."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit(Path(__file__).parent),
        "processor": processor(),
        "cores": os.cpu_count(),
    }


def versions() -> dict[str, Any]:
    """The versions of this package, of Python, and of the libraries that compute."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"virtualmle": __version__, "python": platform.python_version(), **packages}


def commit(folder: Path) -> str:
    """The commit of a checkout as `git describe` names it; "unknown" without git, or where a folder has no history."""
    if not shutil.which("git"):
        return "unknown"
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return done.stdout.strip() or "unknown"


def processor() -> str:
    """The processor's name from /proc/cpuinfo, or else as Python's `platform` reports it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]
