"""What a worker inherits from the server, and what it leaves behind: a stated list of variables, no core dump."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from virtualmle.training.environment import worker_environment

STATE = (
    "import ctypes, os, resource\n"
    "print(ctypes.CDLL(None).prctl(3), oct(os.umask(0)), resource.getrlimit(resource.RLIMIT_CORE))\n"
)


def last_line(script: str, home: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, cwd=home,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout.splitlines()[-1]


def test_a_worker_gets_what_it_needs_and_no_secret() -> None:
    needed = {
        "PATH": "/bin", "HOME": "/somebody", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "2",
        "PYTORCH_CUDA_ALLOC_CONF": "x", "TRITON_CACHE_DIR": "/c", "NVIDIA_VISIBLE_DEVICES": "all", "TMPDIR": "/t",
        "LD_LIBRARY_PATH": "/lib", "VIRTUALMLE_CONFINE": "off",
    }  # fmt: skip
    kept_back = {
        "OPENAI_API_KEY": "a", "ANTHROPIC_API_KEY": "b", "VIRTUALMLE_TOKEN": "c", "VIRTUALMLE_API_KEY": "d",
        "NVIDIA_API_KEY": "e", "TORCH_HUB_TOKEN": "f", "AWS_SECRET_ACCESS_KEY": "g", "CUDA_PASSWORD": "h",
        "DATABASE_URL": "i", "VIRTUALMLE_KEEP_WARM": "60", "PYTHON_KEY": "j", "SSH_AUTH_SOCK": "k",
    }  # fmt: skip
    fixed = {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
    assert worker_environment(needed | kept_back) == {**needed, **fixed, "OMP_WAIT_POLICY": "PASSIVE"}


def test_import_paths_become_absolute_and_a_choice_of_the_user_stays() -> None:
    found = worker_environment({"PYTHONPATH": os.pathsep.join(["here", "", "/there"]), "OMP_WAIT_POLICY": "ACTIVE"})
    assert found["PYTHONPATH"] == os.pathsep.join([os.path.abspath("here"), "/there"])
    assert found["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux whether a process may be inspected")
@pytest.mark.parametrize(
    ("start", "expected"),
    [
        pytest.param(
            "from virtualmle.training.private_process import start_privately\nstart_privately()\n", "1 0o77 (0, 0)",
            id="worker",
        ),
        pytest.param(
            "import sys\nfrom virtualmle.examiner.main import main\nsys.argv[1:] = 'a b --home . --session s --trial t "
            "--model m --dataset d'.split()[2:]\nassert main() == 1\n", "0 0o77 (0, 0)", id="examiner",
        ),
        pytest.param(
            "import sys\nfrom pathlib import Path\nfrom virtualmle.server.serve import serve\nserve(Path('.'))\n",
            "0 (0, 0)", id="server",
        ),
    ],
)  # fmt: skip
def test_secrets_stay_in_the_memory_of_their_process(start: str, expected: str, tmp_path: Path) -> None:
    found = last_line(start + STATE, tmp_path).replace("'", "")
    dumpable, umask, *core = found.split(maxsplit=2)
    wanted = expected.split(maxsplit=2)
    assert (dumpable, core) == (wanted[0], ["(0, 0)"])
    assert len(wanted) == 2 or umask == wanted[1] or "server" in start
