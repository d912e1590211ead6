"""What other users of the machine may read in a home: `virtualmle doctor` finds it, and `doctor --mend` ends it.

Only what VirtualMLE writes is looked at: `memory.db`, `.virtualmle/`, and the sessions of comparisons. The home itself
may hold files of the user.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..data.permissions import OTHERS
from ..data.wording import counted

SHOWN = 3
FOLDERS = (".virtualmle", "compare", "exhibits")


def permissions(home: Path) -> tuple[Literal["ok", "warn", "fail"], str]:
    """Whether other users have permissions in `home`, in a sentence that names the command which takes them away.

    A warning if only files below a directory have them that others cannot enter.
    """
    found = open_to_others(home)
    if not found:
        return "ok", "no file of this home is open to other users"
    shown = ", ".join(str(path.relative_to(home)) for path in found[:SHOWN])
    what = f"{counted(len(found), 'path')} ({shown}{', …' if len(found) > SHOWN else ''})"
    advice = f"run virtualmle doctor --mend --home {home}"
    if found[0].parent == home:
        return "fail", f"other users may read or change {what}; {advice}"
    return "warn", f"only the mode of their directory keeps other users from {what}; {advice}"


def mend_permissions(home: Path) -> int:
    """Take all permissions of other users from what VirtualMLE has written in `home`; returns how many changed.

    Raises PermissionError for a file of another owner.
    """
    found = open_to_others(home)
    for path in found:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~OTHERS)
    return len(found)


def open_to_others(home: Path) -> list[Path]:
    """Files and directories on which the group or others have a permission, the outermost first; links are left out."""
    return [path for path in _written(home) if path.lstat().st_mode & OTHERS] if os.name == "posix" else []


def _written(home: Path) -> Iterator[Path]:
    yield from (path for path in sorted(home.glob("memory.db*")) if path.is_file() and not path.is_symlink())
    for name in FOLDERS:
        if not (home / name).is_dir() or (home / name).is_symlink():
            continue
        yield home / name
        for folder, directories, files in os.walk(home / name):
            entries = (Path(folder) / each for each in sorted((*directories, *files)))
            yield from (path for path in entries if not path.is_symlink() and path.exists())
