"""Copies the files of a finished trial into the directory of an equal trial, which is then over without a process.

The files are hard links where the file system allows it. Trial files are replaced and never written in place, so both
trials keep theirs if one of them is deleted or changed.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ..data.errors import TrialError
from ..training.products import BFLOAT16_CPU, trains_in_bfloat16
from ..training.signature import TrialSignature, write_signed_result
from ..training.spec import (
    CHECKPOINT,
    EPOCH_RANKS,
    JUDGED_RANKS,
    RANKS,
    SPEC,
    USERS,
    TrialResult,
    TrialSpec,
    read_spec,
    trial_file_sha256,
    write_model,
)

FILES = (RANKS, USERS, CHECKPOINT)
COPIED = {*FILES, EPOCH_RANKS, JUDGED_RANKS}


def holds(source: Path, spec: TrialSpec, device: str, files: Mapping[str, str]) -> bool:
    """Whether `source` has a trial that ran as `spec` would here: with its seed, threads, kind of device and products.

    device: the name of the device that it ran on; files: the SHA-256 that each of its files must have.
    """
    try:
        ran = read_spec(source)
        intact = set(files) == set(FILES) and all(trial_file_sha256(source, name) == files[name] for name in FILES)
    except (OSError, TrialError):
        return False
    same_device = _kind(spec.device) in (_kind(ran.device), _kind(device)) and _same_products(spec, device)
    return intact and same_device and (ran.seed, ran.threads) == (spec.seed, spec.threads)


def adopt(
    source: Path, directory: Path, spec: TrialSpec, result: TrialResult, signed: TrialSignature, key: bytes
) -> bool:
    """Make `directory` a finished trial with the files of `source`; False, with no directory left, if that fails.

    signed: the signature of `source`, which is checked; its files are signed anew with `key`, that of the session of
    `spec`. The result is written last: a process that is killed before leaves a trial that was never started. Raises
    TrialError if the directory already holds a trial.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise TrialError(f"{directory} already holds a trial; a handle is never reused: start a new trial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_model(directory / SPEC, spec)
        copied = {name: digest for name, digest in signed.files.items() if name in COPIED}
        for name in copied:
            _copy(source / name, directory / name)
        write_signed_result(directory, key, spec, result, copied, dataset_id=signed.dataset_id, by="server")
    except OSError:  # the source has just been deleted, or the disk is full: the trial runs, or reports the full disk
        shutil.rmtree(directory, ignore_errors=True)
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # another file system, or one without links
        os.link(source, target)
        return
    shutil.copy2(source, target)


def _same_products(spec: TrialSpec, device: str) -> bool:
    """Whether a trial on `device` was trained with products of the type that `spec` would have, if it was a CPU."""
    wanted = trains_in_bfloat16(spec.device, spec.config["loss"])
    return _kind(device) != "cpu" or wanted == (device == BFLOAT16_CPU)


def _kind(device: str) -> str:
    """auto, cpu or cuda."""
    return device.partition(":")[0].partition(" ")[0]
