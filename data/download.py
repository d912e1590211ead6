"""Downloading one file: resumed after an interruption, checked, and put in place whole."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import write_json
from .errors import DataError, HomeError

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if the server says so
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0


def download(url: str, destination: Path, progress: Progress | None = None, sha256: str | None = None) -> Path:
    """Fetch `url` to `destination` and return it; a part left by an earlier attempt is continued.

    The part lies beside the destination (`.part`) with the server's mark of the file's version (`.part.json`), so that
    two versions are never joined. Raises DataError when the server refuses, the connection breaks, or the content is
    not the expected one; HomeError when the file cannot be written.
    """
    # Imported here: this room must also load on a bare GPU machine, where httpx is not installed
    import httpx  # noqa: PLC0415

    part = destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with httpx.Client(follow_redirects=True, timeout=TIMEOUT_SECONDS) as client:
            _fetch(client, url, part, progress)
    except httpx.HTTPError as error:
        kept = part.stat().st_size if part.exists() else 0
        raise DataError(
            f"{url} broke off after {kept} bytes ({error or type(error).__name__}); run the command again to continue"
        ) from None
    except OSError as error:
        raise HomeError(
            f"{str(destination.parent)!r} cannot be written ({error.strerror}); choose another home"
        ) from None
    return _accept(part, destination, url, sha256)


def _fetch(client: "httpx.Client", url: str, part: Path, progress: Progress | None) -> None:
    done = part.stat().st_size if part.exists() else 0
    version = _version_path(part)
    headers = {"Accept-Encoding": "identity"}  # else the bytes of a Range would be those of a compressed stream
    if done and version.exists():
        headers |= {"Range": f"bytes={done}-", "If-Range": json.loads(version.read_text())["version"]}
    else:
        done = 0
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:  # nothing beyond what is here: the part is whole, or of another version
            return
        if response.status_code not in (200, 206):
            raise DataError(f"{url} answered {response.status_code}; check the address and the network")
        done = done if response.status_code == 206 else 0  # 200: the server sends everything from the start
        _remember_version(version, response.headers)
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if done else "wb") as file:
            for chunk in response.iter_raw(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)


def _version_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _remember_version(path: Path, headers: "httpx.Headers") -> None:
    """Keep the mark by which the server knows this version of the file; without one, nothing can be resumed."""
    tag = headers.get("ETag", "")
    mark = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
    if mark:
        write_json(path, {"version": mark})
    else:
        path.unlink(missing_ok=True)


def _accept(part: Path, destination: Path, url: str, sha256: str | None) -> Path:
    if sha256 is not None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            part.unlink()
            raise DataError(f"{url} has SHA-256 {found}, not {sha256}; the file changed or was damaged: download again")
    part.replace(destination)
    _version_path(part).unlink(missing_ok=True)
    return destination
