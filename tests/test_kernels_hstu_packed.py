"""The packed Triton kernels in the interpreter, which Triton selects at import: hence a separate process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import virtualmle

ROOT = Path(virtualmle.__file__).resolve().parent


def test_the_packed_kernels_agree_with_the_reference_in_the_interpreter():
    pytest.importorskip("triton", reason="Triton has no wheel for this system")
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "tests/interpreted_hstu_packed.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
