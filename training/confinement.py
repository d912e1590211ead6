"""What the process of a trial may open, where the kernel has Landlock (landlock.py).

It reads its interpreter, libraries and code, /proc and /sys, the arrays of its dataset, and the trials of its home. It
writes in the directory of its trial, or in that of its session if it is warm, and in the caches of CUDA and Triton. It
neither opens nor accepts TCP connections, signals no process but its own children, and as root has no capability but
those for files (capabilities.py).

It therefore cannot open the vault, even though it runs as the user who owns the vault: neither the key of the seal, nor
revealed results, nor `memory.db`. Nor can it open another dataset, the sealed part of its own, or files of the user.

A worker confines itself, before it imports numpy or torch: these start threads, and Landlock restricts only the thread
that asks and those that it starts later. Before, it reads only what names its inputs: the directories in spec.json,
which the launcher has written, and the files in the manifest of its dataset.

Not covered: metadata (the names of datasets and trials, the size and times of any file), UDP, a kernel without
Landlock, and file systems where it fails, for which VIRTUALMLE_CONFINE=off switches it off. A worker that cannot be
confined runs all the same; its result says so in `confined`. The examiner is not confined, because it needs the vault.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .capabilities import drop_capabilities
from .landlock import DEVICE, MIN_ABI, READ, RUN, WRITE, Right, kernel_abi, restrict

SWITCH, OFF = "VIRTUALMLE_CONFINE", "off"
STATE_FOLDER = ".virtualmle"  # of a home: datasets, sessions and the vault

SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/opt", "/nix", "/gnu", "/proc", "/sys",
    "/run/opengl-driver", "/run/current-system", "/run/nvidia-persistenced",
)  # fmt: skip
DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*", "dri", "kfd", "dxg")  # beneath /dev
ACCELERATORS = ("nvidiactl", "kfd", "dxg")  # beneath /dev: that there is a GPU, whose compilers need a cache
LIBRARY_VARIABLES = ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX")
CACHES = (  # a variable that names the directory, and the directory without it
    ("CUDA_CACHE_PATH", "~/.nv/ComputeCache"),
    ("TRITON_CACHE_DIR", "~/.triton/cache"),
    ("PYTORCH_KERNEL_CACHE_PATH", "~/.cache/torch/kernels"),
)

CUDA_EXCHANGE = (  # with the driver's other processes; not created by us
    ("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"),
    ("", "/dev/shm"),
)

Grants = list[tuple[Path, Right]]


class Confinement:
    """Whether this process is confined, for its result: "landlock ABI 7", or why not; empty if nobody has asked."""

    state = ""


def confinement_here(environ: Mapping[str, str] = os.environ) -> str:
    """How a worker would be confined on this machine: "landlock ABI 7", or why it would not be."""
    abi = kernel_abi()
    if environ.get(SWITCH, "").lower() == OFF:
        return f"off ({SWITCH}={OFF})"
    if abi < MIN_ABI:
        return f"not available (Landlock ABI {abi}, needs {MIN_ABI})" if abi else "not available (no Landlock here)"
    return f"landlock ABI {abi}"


def is_confined(state: str) -> bool:
    """Whether `state`, as in a trial's result or from `confinement_here`, means that a worker was confined."""
    return state.startswith("landlock")


def confine_worker(directory: Path, inbox: Path | None = None, *, tcp: bool = False) -> str:
    """Confine this process to the trial in `directory` and those that it will claim from `inbox`; returns the state.

    tcp: whether it may use TCP. A failure is a warning on standard error.
    """
    Confinement.state = confinement_here()
    if not is_confined(Confinement.state):
        return Confinement.state
    if missing := _missing_devices():
        Confinement.state = f"not confined ({missing})"
        return Confinement.state
    try:
        _store_bytecode()
        os.environ["TMPDIR"] = str(directory)  # /tmp is shared with others; what is written here goes with the trial
        grants = grants_of(directory, inbox)
        drop_capabilities()
        restrict(grants, tcp=tcp)
    except OSError as error:
        Confinement.state = f"not confined ({error.strerror})"
        print(f"warning: this worker is {Confinement.state}; {SWITCH}={OFF} silences this", file=sys.stderr, flush=True)
    return Confinement.state


def grants_of(directory: Path, inbox: Path | None) -> Grants:
    """The rights of the worker of the trial in `directory`, and of an inbox if it has one."""
    home = _home_of(directory)
    kept_out = [home / STATE_FOLDER, *home.glob("memory.db*")] if home else [directory.parent]
    shared = [(Path(path), RUN) for path in (*SYSTEM, *_code())]
    shared += [(path, DEVICE) for pattern in DEVICES for path in Path("/dev").glob(pattern)]
    shared += [(Path("/proc/self"), DEVICE), *((path, WRITE) for path in _caches())]
    inputs = inputs_of(directory)
    # Files of a home are opened from one or two directories above (data/safe_open.py), which takes a right to list them
    above = {path.parent.parent for path in (directory, *inputs)}
    own = [directory, *([directory.parent, inbox.parent] if inbox else [])]
    return [
        *(grant for path, rights in shared for grant in around(path, rights, kept_out)),
        (home / STATE_FOLDER / "sessions" if home else directory.parent, READ),
        *((path, Right.READ_DIR) for path in above),
        *((path, READ) for path in inputs),
        *((path, WRITE) for path in own),
    ]


def around(path: Path, rights: Right, kept_out: Iterable[Path]) -> Grants:
    """Grants for all that is beneath `path` now, except for the paths `kept_out`; their names can still be listed.

    A grant for a directory holds for all beneath it, so one that contains something to keep out is replaced by grants
    for what else it contains. That is the case of a home in a checkout of this package, or in /opt.
    """
    real, closed = Path(os.path.realpath(path)), [Path(os.path.realpath(each)) for each in kept_out]
    if any(real.is_relative_to(each) for each in closed):
        return []
    inside = [each for each in closed if each.is_relative_to(real)]
    if not inside:
        return [(real, rights)]
    found: Grants = [(real, rights & Right.READ_DIR)]
    with contextlib.suppress(OSError):
        for entry in os.scandir(real):
            # What a link points to has a path, and perhaps a grant, of its own
            found += [] if entry.is_symlink() else around(Path(entry.path), rights, inside)
    return found


def inputs_of(directory: Path) -> list[Path]:
    """The files and directories that the trial in `directory` reads: arrays of its dataset, and earlier trials."""
    try:
        spec = json.loads((directory / "spec.json").read_bytes())
        named = [*spec.get("members", []), *spec.get("teachers", [])]
        trials = [spec.get("rescore_from"), spec.get("resume_from"), *(model["directory"] for model in named)]
        manifest = Path(spec["dataset_dir"]) / "manifest.json"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # the worker will say so
        return []
    return [manifest, *_arrays(manifest), *(Path(trial) for trial in trials if trial)]


def _arrays(manifest: Path) -> list[Path]:
    try:
        names = [str(name) for name in json.loads(manifest.read_bytes())["files"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [manifest.parent / name for name in names if name.endswith(".npy") and os.path.basename(name) == name]


def can_read_inputs(directory: Path) -> bool:
    """Whether this process may open the inputs of the trial in `directory`, which it was not confined to."""
    for path in inputs_of(directory):
        try:
            os.close(os.open(path, os.O_RDONLY))
        except PermissionError:
            return False
        except OSError:  # it does not exist: the trial will say so
            continue
    return True


def _home_of(directory: Path) -> Path | None:
    """The home that the trial in `directory` belongs to; None for a trial outside of one, as on a node of a cluster."""
    return next((parent.parent for parent in directory.resolve().parents if parent.name == STATE_FOLDER), None)


def _code() -> Iterator[str]:
    """Where Python, this package and the libraries are, with the targets of links among the installed packages."""
    yield from {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    yield os.path.dirname(os.path.realpath(sys.executable))
    yield str(Path(__file__).resolve().parents[1])
    for name in LIBRARY_VARIABLES:
        yield from (entry for entry in os.environ.get(name, "").split(os.pathsep) if entry)
    for entry in filter(os.path.isdir, sys.path):
        yield entry
        with contextlib.suppress(OSError):
            yield from (os.path.realpath(found.path) for found in os.scandir(entry) if found.is_symlink())


def _caches() -> list[Path]:
    """The directories in which CUDA, Triton and torch keep what they compile, which are created if there is a GPU."""
    found = [*(_chosen(name, default) for name, default in CACHES), _chosen("TRITON_HOME", "~") / ".triton"]
    if any(Path("/dev", name).exists() for name in ACCELERATORS):
        for path in found:
            with contextlib.suppress(OSError):
                path.mkdir(parents=True, exist_ok=True)
    return [*found, *(_chosen(name, default) for name, default in CUDA_EXCHANGE)]


def _chosen(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or os.path.expanduser(default))


def _missing_devices() -> str:
    """Why the NVIDIA driver still needs a set-user-id program, which no confined process can start; else empty."""
    unfinished = Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidia-uvm").exists()
    return "the NVIDIA driver has not yet created /dev/nvidia-uvm" if unfinished else ""


def _store_bytecode() -> None:
    """Import once without confinement, if Python has not stored the bytecode of torch and of this package yet.

    A confined process cannot write beside the code. Without stored bytecode every worker would compile all modules.
    """
    torch = importlib.util.find_spec("torch")
    sources = [Path(__file__).with_name("pipeline.py"), *([Path(torch.origin)] if torch and torch.origin else [])]
    stored = [Path(importlib.util.cache_from_source(str(source))) for source in sources]
    lacking = [path for path in stored if not path.exists()]
    if sys.dont_write_bytecode or not any(_can_be_created(path) for path in lacking):
        return
    command = [sys.executable, "-P", "-c", "import virtualmle.training.pipeline"]
    quiet = subprocess.DEVNULL
    subprocess.run(command, check=False, stdin=quiet, stdout=quiet, stderr=quiet, env=os.environ | {SWITCH: OFF})


def _can_be_created(path: Path) -> bool:
    folder = path.parent if path.parent.is_dir() else path.parent.parent
    return os.access(folder, os.W_OK)
