"""The isolation level of a home: who could read the key of its test sets. docs/security.md defines the levels.

What can be found out depends on where the command runs. As the user who owns the home it sees the key, and the level
depends on the user of the agents, which `--agent-user` names. As the agents' own user it sees whether the home is
closed. On another host there is no home to be seen. Not covered: who has the password of root, and what a container
shares with its host.
"""

import os
import stat
from pathlib import Path
from typing import Literal, NamedTuple

from ..data.catalogue import Catalogue
from ..data.errors import HomeError
from ..data.seal import KEY_BYTES
from ..examiner.operator_keys import public_key_of
from ..examiner.vault import PRIVATE, Vault

Level = Literal["L0", "L1", "L2", "L3"]


class Isolation(NamedTuple):
    """The level, and a sentence that says why and what would raise it."""

    level: Level
    detail: str
    status: Literal["ok", "warn", "fail"] = "ok"


def isolation_of(home: Path, agent_user: str | None = None, *, has_plain_targets: bool = False) -> Isolation:
    """The level of `home` against agents of the user `agent_user` (None: the user of this process).

    Raises HomeError for an unknown user.
    """
    directory = Vault(home).directory
    if has_plain_targets:
        return Isolation("L0", "test targets lie in the clear; remove the files named under `plain targets`", "fail")
    if not _is_reachable(directory):
        return Isolation("L2", "the vault belongs to another user")
    if Vault(home).mode == "operator":
        return _operator_mode(home)
    if not (directory / PRIVATE).exists():
        return _without_keys(home)
    user = os.geteuid() if agent_user is None and os.name == "posix" else _uid(agent_user)
    if user is None or user in (0, (directory / PRIVATE).stat().st_uid) or _is_open(directory):
        return Isolation(
            "L1",
            "sealed, but a process of the same user could read the key; for L2, serve over HTTP as another user",
        )
    return Isolation("L2", f"the vault is closed to {agent_user}, who reaches the tools over HTTP only")


def _without_keys(home: Path) -> Isolation:
    if Catalogue(home).names():
        return Isolation("L1", "the keys of the test sets are gone; restore private_key and public_key", "fail")
    return Isolation("L1", "no dataset yet; test targets will be sealed")


def _operator_mode(home: Path) -> Isolation:
    """Whether the private key is really elsewhere, and whether its holder's answers can be verified."""
    vault = Vault(home)
    files = (path for path in home.rglob("*") if path.is_file() and path.stat().st_size == KEY_BYTES)
    for path in files:
        if public_key_of(path.read_bytes()) == vault.public_key():
            return Isolation("L1", f"operator mode, but the private key lies in {path}; move it away", "fail")
    if vault.verify_key() is None:
        return Isolation(
            "L3",
            "only a public key is here, and nothing verifies its holder's answers; if nobody holds the private key, "
            "restore it, or else no test set of this home can be opened",
            "warn",
        )
    return Isolation("L3", "operator mode: the private key is not in this home; records are protected as on L1")


def _is_reachable(directory: Path) -> bool:
    try:
        return not directory.exists() or os.access(directory, os.R_OK)
    except PermissionError:  # a folder above it is closed
        return False


def _is_open(directory: Path) -> bool:
    """Whether other users may enter the vault."""
    return bool(stat.S_IMODE(directory.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO))


def _uid(user: str | None) -> int | None:
    """The number of a user; None on a system without them. Raises HomeError for an unknown name."""
    if user is None or os.name != "posix":
        return None
    import pwd

    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise HomeError(f"--agent-user {user!r} is not a user of this machine; see `getent passwd`") from None
