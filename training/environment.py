"""The environment of processes that train or examine: a stated list of variables, instead of all that the server has.

The server's environment may hold its bearer token and the keys of language models, which no trial needs. Does not
import torch.
"""

import contextlib
import os
import re
from collections.abc import Mapping

NAMES = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "GLIBC_TUNABLES",
    "VIRTUAL_ENV", "CONDA_PREFIX", "CC", "CXX",  # Triton compiles its launchers
    "VIRTUALMLE_CONFINE", "VIRTUALMLE_PARENT",  # confinement.py, bound_worker.py
})  # fmt: skip
PREFIXES = (
    "LC_", "PYTHON", "MALLOC_",
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "DNNL_", "ONEDNN_", "NUMEXPR_", "POLARS_",
    "CUDA_", "NVIDIA_", "CUBLAS_", "CUDNN_", "NCCL_", "HIP_", "HSA_", "ROCR_",
    "TORCH", "PYTORCH_", "ATEN_", "TRITON_",
)  # fmt: skip
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(^|_)(API_?)?KEYS?(_|$)")
"""Parts of a name that no listed variable may have: NVIDIA_API_KEY is the key of a language model."""


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a worker or the examiner gets of `environ`, with absolute import paths and file names in UTF-8.

    OpenMP's threads sleep at a barrier unless `environ` says otherwise: threads that spin starve other processes.
    """
    passed = {name: value for name, value in environ.items() if is_passed(name)}
    given = passed.pop("PYTHONPATH", "")
    with contextlib.suppress(FileNotFoundError):  # the working directory was deleted, so relative entries are useless
        given = os.pathsep.join(os.path.abspath(entry) for entry in given.split(os.pathsep) if entry)
    path = {"PYTHONPATH": given} if given else {}
    return {"OMP_WAIT_POLICY": "PASSIVE", **passed, **path, "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}


def is_passed(name: str) -> bool:
    """Whether a variable is passed on to workers and to the examiner."""
    return (name in NAMES or name.startswith(PREFIXES)) and not holds_secret(name)


def holds_secret(name: str) -> bool:
    """Whether a variable has the name of a token, a key or a password."""
    return SECRET.search(name.upper()) is not None
