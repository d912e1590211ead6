"""The system calls of Landlock, with which a Linux process gives up rights for itself and for all that it starts.

Documentation: https://docs.kernel.org/userspace-api/landlock.html. What is not granted is refused, for root as well,
and nothing gives a right back. The calls restrict the calling thread only, so they must come before any other thread
starts. This module knows no paths of ours (confinement.py does) and imports the standard library only.
"""

import ctypes
import os
import stat
import sys
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path

MIN_ABI = 2  # version 1 forbids every move from one directory to another, and so a warm worker claims its trials
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, with the same numbers on x86-64 and arm64
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38


class Right(IntFlag):
    """Rights on files, LANDLOCK_ACCESS_FS_*; the names in comments are versions of the ABI that added one."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # 2: move or link a file from one directory to another
    TRUNCATE = 1 << 14  # 3
    IOCTL_DEV = 1 << 15  # 5


READ = Right.READ_FILE | Right.READ_DIR
RUN = READ | Right.EXECUTE
WRITE = (
    READ | Right.WRITE_FILE | Right.TRUNCATE | Right.REFER | Right.REMOVE_DIR | Right.REMOVE_FILE
    | Right.MAKE_DIR | Right.MAKE_REG | Right.MAKE_SYM | Right.MAKE_SOCK | Right.MAKE_FIFO
)  # fmt: skip
DEVICE = READ | Right.WRITE_FILE | Right.TRUNCATE | Right.IOCTL_DEV
ON_FILES = Right.EXECUTE | Right.WRITE_FILE | Right.READ_FILE | Right.TRUNCATE | Right.IOCTL_DEV
"""The rights that a rule for a single file may have; others are an error (EINVAL)."""

_BIND_AND_CONNECT = 0b11  # LANDLOCK_ACCESS_NET_BIND_TCP, _CONNECT_TCP (ABI 4)
_SOCKETS_AND_SIGNALS = 0b11  # LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, _SIGNAL (ABI 6)


class RulesetAttributes(ctypes.Structure):
    """struct landlock_ruleset_attr. An older kernel accepts the fields that it does not know if they are 0."""

    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr, 12 bytes without padding."""

    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def kernel_abi() -> int:
    """The version of Landlock in this kernel; 0 if it has none, or if a container forbids the calls."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        return _call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:  # ENOSYS: no such call; EOPNOTSUPP: switched off at boot; EPERM: forbidden by seccomp
        return 0


def rights_known(abi: int) -> Right:
    """All rights on files that a kernel of this version can restrict."""
    last = {1: Right.MAKE_SYM, 2: Right.REFER, 3: Right.TRUNCATE, 4: Right.TRUNCATE}.get(abi, Right.IOCTL_DEV)
    return Right(2 * last - 1)


def ruleset_attributes(abi: int, tcp: bool) -> RulesetAttributes:
    """What a ruleset restricts on a kernel of this version: all of it, but TCP only if `tcp` is not allowed."""
    return RulesetAttributes(
        fs=rights_known(abi),
        net=_BIND_AND_CONNECT if abi >= 4 and not tcp else 0,
        scoped=_SOCKETS_AND_SIGNALS if abi >= 6 else 0,
    )


def restrict(grants: Iterable[tuple[Path, Right]], *, tcp: bool) -> int:
    """Restrict this process to `grants`, which hold for a path and all beneath it; returns the version of the ABI.

    A path that does not exist, or that this user may not look up, is passed over. Programs that this process starts can
    no longer gain rights by a set-user-id bit. With a version of 6 or more, signals and abstract sockets reach only
    processes that this one has started. Raises OSError if the kernel refuses.
    """
    abi = kernel_abi()
    attributes = ruleset_attributes(abi, tcp)
    ruleset = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    try:
        for path, rights in grants:
            _grant(ruleset, path, rights & Right(attributes.fs))
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return abi


def _grant(ruleset: int, path: Path, rights: Right) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rule = PathBeneath(rights if is_directory else rights & ON_FILES, descriptor)
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    """A system call; arguments are integers, or pointers as `ctypes.byref` makes them. Raises OSError."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    values = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = int(call(ctypes.c_long(number), *values))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
