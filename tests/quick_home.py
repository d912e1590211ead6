"""A home whose protocol makes trials run in about a second: one epoch, a small model, a few knobs."""

import os
import sys
from pathlib import Path

from virtualmle.cli.attacks.page import PAGE

QUICK_SANDBOX = PAGE.replace("# Scratch", "# Quick").replace("| `max_trials` | 8 |", "| `max_trials` | 2 |")


def quick_home(home: Path) -> Path:
    """Write the quick protocol to `home` and return `home`."""
    home.mkdir(exist_ok=True)
    (home / "SANDBOX.md").write_text(QUICK_SANDBOX, encoding="utf-8")
    return home


def confirming_home(home: Path, top: int, repetitions: int, epochs: int = 2) -> Path:
    """A quick home of up to nine trials whose best `top` are confirmed under `repetitions` fresh seeds; returns it."""
    rules = f"| `confirm_top` | {top} |\n| `confirm_repetitions` | {repetitions} |\n"
    page = QUICK_SANDBOX.replace("| `require_reflection` | true |\n", f"| `require_reflection` | true |\n{rules}")
    page = page.replace("| `epochs` | 1 … 1 | 1 | 1 |", f"| `epochs` | 1 … {epochs} | {epochs} | {epochs} |")
    home.mkdir(exist_ok=True)
    (home / "SANDBOX.md").write_text(page.replace("`max_trials` | 2", "`max_trials` | 9"), encoding="utf-8")
    return home


def environment() -> dict[str, str]:
    """The environment in which a child process finds the package as this process does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
