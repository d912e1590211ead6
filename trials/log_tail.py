"""Describes the end of a worker: its exit code in words, and the last lines of its log, made printable."""

import signal
from pathlib import Path

TAIL_BYTES = 4096
TAIL_LINES = 4
TAIL_CHARACTERS = 600  # agents read this text: enough for an exception and its origin


def describe_exit(code: int | None, *, began: bool = True) -> str:
    """How a process ended, to follow "ended without a result"; empty if the exit code is not known.

    `began`: whether the worker had started its trial. Before that, a smaller configuration would not help.
    """
    if code is None:
        return ""
    if code == -signal.SIGKILL and not began:
        return " (signal SIGKILL; often the system's out-of-memory killer: free memory of this machine)"
    if code == -signal.SIGKILL:
        return " (signal SIGKILL; often the system's out-of-memory killer: try a smaller batch_size or model)"
    return f" (signal {signal.Signals(-code).name})" if code < 0 else f" (exit code {code})"


def last_lines(log: Path) -> str:
    """The last lines of a log as `; last output: "…"`, printable and truncated; empty if there are none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = ["".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines()]
    tail = " | ".join([line for line in lines if line][-TAIL_LINES:])[-TAIL_CHARACTERS:]
    return f'; last output: "{tail}"' if tail else ""
