"""Linux capabilities: what root may do beyond the permissions of files. Imports the standard library only.

A server in a container often runs as root. Its workers could then read the environment of the server, with its token
and keys, because CAP_PERFMON and CAP_SYS_ADMIN allow what Landlock refuses: a look at other processes.
"""

import ctypes
import os

KEPT = 0b1111  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER: a home may have files of another user
_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """Half of the capability sets: 32 bits of each; the kernel takes two of these."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop_capabilities() -> None:
    """Give up all capabilities of this thread, and of those it starts, except those for files. Raises OSError.

    Programs that it starts get them back if root starts them, unless the process has set no_new_privs.
    """
    library = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    if library.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for number, kept in enumerate((KEPT, 0)):
        held = sets[number].permitted & kept
        sets[number] = _Sets(sets[number].effective & held, held, 0)
    if library.capset(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
