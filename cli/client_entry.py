"""The entry that starts this installation, and the configuration file of a client with or without it.

`with_entry` and `without_entry` are pure; `read_config` and `write_config` are the only functions that touch files.
"""

import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.atomic import write_bytes
from ..data.errors import ClientConfigError
from . import json_entry, toml_entry
from .mcp_clients import Client

PASSED_ON = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")  # clients hide these from the servers that they start
BACKUP = ".before-virtualmle"
Entry = dict[str, Any]


def launch_command(home: Path, environ: Mapping[str, str], extra: Mapping[str, str]) -> Entry:
    """command, args and env of a server over `home`, all paths absolute; `extra` wins over variables of `environ`."""
    passed = {name: environ[name] for name in PASSED_ON if environ.get(name)}
    script = shutil.which("virtualmle", path=str(Path(sys.executable).parent))
    if script is None:  # not installed: run from a checkout
        passed |= {name: environ[name] for name in ("PYTHONPATH",) if environ.get(name)}
    start = [script] if script else [sys.executable, "-P", "-m", "virtualmle"]
    variables = {**passed, **extra}
    entry: Entry = {"command": start[0], "args": [*start[1:], "serve", "--home", str(home)]}
    return entry | ({"env": variables} if variables else {})


def variables(pairs: list[str]) -> dict[str, str]:
    """{"K": "V"} for ["K=V"]. Raises ClientConfigError."""
    for pair in pairs:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=[^\0]*", pair):
            raise ClientConfigError(f"--env takes NAME=VALUE, not {pair!r}, e.g. --env CUDA_VISIBLE_DEVICES=0")
    return dict(pair.split("=", 1) for pair in pairs)


def require_name(name: str) -> str:
    """The name itself, if every client accepts it. Raises ClientConfigError."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
        raise ClientConfigError(f"--name takes up to 40 letters, digits, - and _, not {name!r}, e.g. --name virtualmle")
    return name


def with_entry(client: Client, path: Path, text: str, name: str, entry: Entry) -> str:
    """The file's text with our entry. Fields that the user has added to it, and further variables, are kept.

    Raises ClientConfigError.
    """
    if path.suffix == ".toml":
        present = toml_entry.table(text, client.group, name) or {}
        changed = {key: value for key, value in _merged(present, entry).items() if key in ("command", "args", "env")}
        return toml_entry.with_table(text, client.group, name, changed)
    servers = json_entry.read(text).value.get(client.group)
    found = servers.get(name) if isinstance(servers, dict) else None
    wanted = _merged(found if isinstance(found, dict) else {}, client.fields | entry)
    return json_entry.with_entry(text, client.group, name, wanted)


def without_entry(client: Client, path: Path, text: str, name: str) -> str:
    """The file's text without our entry. Raises ClientConfigError."""
    remove = toml_entry.without_table if path.suffix == ".toml" else json_entry.without_entry
    return remove(text, client.group, name)


def shell_command(name: str, entry: Entry) -> str:
    """The command that adds the entry to Claude Code for all projects of the user.

    --scope stands between --env, which takes every word up to the next option, and the name.
    """
    pairs = [word for pair in entry.get("env", {}).items() for word in ("--env", "=".join(pair))]
    words = ["claude", "mcp", "add", *pairs, "--scope", "user", name, "--", entry["command"], *entry["args"]]
    return shlex.join(words)


def _merged(present: Entry, entry: Entry) -> Entry:
    old = present.get("env")
    both = {**(old if isinstance(old, dict) else {}), **entry.get("env", {})}
    return {**present, **entry} | ({"env": both} if both else {})


def read_config(path: Path) -> str:
    """The text of a configuration file, "" if there is none. Raises ClientConfigError."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ClientConfigError(f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ClientConfigError("it is not UTF-8 text") from None


def write_config(path: Path, text: str) -> Path | None:
    """Replace the file in one step, with its permissions; returns the copy of what was there, if anything was.

    A link, as people who version their settings use, stays a link. Raises ClientConfigError.
    """
    target = path.resolve()
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, text.encode())
            return None
        mode = stat.S_IMODE(target.stat().st_mode)
        backup = target.with_name(target.name + BACKUP)
        for file, content in ((backup, target.read_bytes()), (target, text.encode())):
            write_bytes(file, content, 0o600)
            os.chmod(file, mode)
        return backup
    except OSError as error:
        raise ClientConfigError(f"it cannot be written: {error.strerror}") from None
