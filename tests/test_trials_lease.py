"""The handles of the processes that a launcher has started."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

from virtualmle.trials.lease import adopt_child


def test_a_second_process_of_a_directory_leaves_the_first_to_be_reaped(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", "input()"]
    first, second = (subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(2))
    pid, kept = first.pid, weakref.ref(first)
    adopt_child(tmp_path, first)
    adopt_child(tmp_path, second)
    del first
    gc.collect()  # an unreaped handle that is collected is a ResourceWarning, and its process a zombie
    for child in (kept(), second):
        assert child is not None, f"process {pid} has no handle"
        child.communicate(b"\n")
