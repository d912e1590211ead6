"""API keys: found in the environment or in a key file, sent to their provider only, and redacted from every text."""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from ...data.errors import LanguageModelError
from .settings import HOSTS, ModelSettings

ANY_HOST = "VIRTUALMLE_API_KEY"
"""The variable of a key for any host. A provider's own variable (OPENAI_API_KEY, …) is read for its own host only."""

_LIKE_A_KEY = re.compile(r"\b(?:sk|pk|gsk|xai)-[\w*.-]{6,}|(?<=Bearer )[\w*.~+/-]+=*", re.IGNORECASE)
REDACTED = "[key]"


def find_key(settings: ModelSettings, environment: Mapping[str, str] = os.environ) -> str | None:
    """The key for the address of `settings`, or None for a server that needs none.

    Looked up in this order: the key file, VIRTUALMLE_API_KEY, the variable of the provider. Raises LanguageModelError
    if a provider that needs a key has none, or if it would be sent unencrypted over a public network.
    """
    key = read_key_file(settings.key_file) if settings.key_file else _from_environment(settings, environment)
    if key is None and settings.host in HOSTS:
        variable = HOSTS[settings.host].key_variable
        raise LanguageModelError(
            f"there is no API key for {settings.host}; set {variable} or {ANY_HOST}, or name a file with --key-file"
        )
    if key is not None and not settings.is_encrypted:
        raise LanguageModelError(
            f"{settings.address} is not encrypted, and the API key would be readable on the way; use an https address"
        )
    return key


def read_key_file(path: Path) -> str:
    """The key in a file: its first line that is not empty. Others must not be able to read the file (POSIX only)."""
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise LanguageModelError(f"the key file {path} cannot be read; name a text file with the key") from None
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise LanguageModelError(
            f"the key file {path} has mode {stat.S_IMODE(mode):o}, so other users can read it; run chmod 600 on it"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise LanguageModelError(f"the key file {path} is empty; write the key on its first line")
    return _checked(lines[0], str(path))


def redact(text: str, key: str | None) -> str:
    """`text` without the key and without anything that looks like one."""
    return _LIKE_A_KEY.sub(REDACTED, text.replace(key, REDACTED) if key else text)


def _from_environment(settings: ModelSettings, environment: Mapping[str, str]) -> str | None:
    own = HOSTS[settings.host].key_variable if settings.host in HOSTS else None
    for variable in (ANY_HOST, own):
        if variable and environment.get(variable, "").strip():
            return _checked(environment[variable].strip(), variable)
    return None


def _checked(key: str, where: str) -> str:
    """The key, if it can be sent in an HTTP header; the error does not repeat it."""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise LanguageModelError(f"the key in {where} has spaces or characters that no key has; copy it again")
    return key
