"""The peak of this process's memory, from the start of a trial: what a further trial on the dataset would need."""

import contextlib
import resource
import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets the peak to the present resident size


def reset_peak() -> None:
    """Forget the peak of earlier trials of this process; where the system cannot, their peak counts as well."""
    with contextlib.suppress(OSError):
        CLEAR.write_text(RESET_PEAK, encoding="ascii")


def peak_bytes() -> int:
    """The largest resident size since the last `reset_peak`, in bytes."""
    with contextlib.suppress(OSError):
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
