"""Waits in tests for an effect of another process, with a limit that suits a loaded machine."""

import time
from collections.abc import Callable

import pytest

GIVE_UP_SECONDS = 240.0  # below the test timeout, so that a condition that never holds fails with a message
POLL_SECONDS = 0.01


def until(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds."""
    end = time.monotonic() + GIVE_UP_SECONDS
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"the condition did not hold within {GIVE_UP_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
