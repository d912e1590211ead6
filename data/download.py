"""Download of one file: resumed after an interruption, verified, and moved to its destination only when complete."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import write_json
from .errors import DataError, HomeError

if TYPE_CHECKING:
    import httpx

# Arguments: bytes received so far, and bytes in total (None if the server does not send a length)
Progress = Callable[[int, int | None], None]
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0


def download(url: str, destination: Path, progress: Progress | None = None, sha256: str | None = None) -> Path:
    """Download `url` to `destination` and return `destination`; a partial file of an earlier attempt is continued.

    The partial file (`.part`) is beside the destination. The validator that the server sent for this version of the
    file is stored in `.part.json`, so that two versions are never joined. Raises DataError if the server refuses the
    request, the connection breaks, or the content does not match `sha256`; HomeError if the file cannot be written.
    """
    # Imported here because this module must also load on a bare GPU machine, where httpx is not installed
    import httpx  # noqa: PLC0415

    partial = destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with httpx.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS) as client:
            _fetch(client, url, partial, progress)
    except httpx.HTTPError as error:
        size = partial.stat().st_size if partial.exists() else 0
        raise DataError(
            f"{url} stopped after {size} bytes ({error or type(error).__name__}); run the command again to continue"
        ) from None
    except OSError as error:
        raise HomeError(
            f"{str(destination.parent)!r} cannot be written ({error.strerror}); choose another home"
        ) from None
    return _verify_and_move(partial, destination, url, sha256)


def _fetch(client: "httpx.Client", url: str, partial: Path, progress: Progress | None) -> None:
    received = partial.stat().st_size if partial.exists() else 0
    version = _version_path(partial)
    headers = {"Accept-Encoding": "identity"}  # otherwise Range would count bytes of a compressed stream
    if received and version.exists():
        headers |= {"Range": f"bytes={received}-", "If-Range": json.loads(version.read_text())["version"]}
    else:
        received = 0
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:  # the partial file is complete, or is of another version
            return
        if response.status_code not in (200, 206):
            raise DataError(f"{url} answered {response.status_code}; check the address and the network")
        received = received if response.status_code == 206 else 0  # 200: the server sends the file from its first byte
        _save_version(version, response.headers)
        length = response.headers.get("Content-Length")
        total = received + int(length) if length else None
        with partial.open("ab" if received else "wb") as file:
            for chunk in response.iter_raw(CHUNK_BYTES):
                file.write(chunk)
                received += len(chunk)
                if progress:
                    progress(received, total)


def _version_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _save_version(path: Path, headers: "httpx.Headers") -> None:
    """Store the validator (strong ETag or Last-Modified) of this version; without one, a download cannot be resumed."""
    tag = headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
    if validator:
        write_json(path, {"version": validator})
    else:
        path.unlink(missing_ok=True)


def _verify_and_move(partial: Path, destination: Path, url: str, sha256: str | None) -> Path:
    if sha256 is not None:
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            partial.unlink()
            raise DataError(f"{url} has SHA-256 {digest}, not {sha256}; it changed or was damaged: download it again")
    partial.replace(destination)
    _version_path(partial).unlink(missing_ok=True)
    return destination
