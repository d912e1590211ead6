"""Downloads from a real HTTP server on the loopback interface: resumption, checksum, atomic completion."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from virtualmle.data.download import download
from virtualmle.data.errors import DataError, HomeError

CONTENT = bytes(range(256)) * 12_000  # three chunks of the client


class FileServer(ThreadingHTTPServer):
    """Serves one file with Range and If-Range; `break_after` truncates the next response after that many bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag = CONTENT, '"v1"'
        self.supports_ranges = True
        self.break_after: int | None = None
        self.requested_ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.gz"


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, requested = self.server, self.headers.get("Range")
        server.requested_ranges.append(requested)
        if self.path != "/file.gz":
            self.send_error(404)
            return
        start = 0
        if requested and server.supports_ranges and self.headers.get("If-Range") == server.tag:
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.tag)
        self.end_headers()
        self.wfile.write(body[: server.break_after])  # the connection closes afterwards
        server.break_after = None

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FileServer() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_file_is_downloaded_and_progress_is_reported(server: FileServer, tmp_path: Path) -> None:
    progress: list[tuple[int, int | None]] = []
    path = download(server.url, tmp_path / "new" / "file.gz", lambda done, total: progress.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert [p.name for p in path.parent.iterdir()] == ["file.gz"]


def test_an_interrupted_download_resumes_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "file.gz"
    server.break_after = 2_000_000
    with pytest.raises(DataError, match=r"stopped after \d+ bytes.*again to continue"):
        download(server.url, target)
    assert not target.exists()
    kept = (tmp_path / "file.gz.part").stat().st_size
    assert 0 < kept <= 2_000_000
    progress: list[tuple[int, int | None]] = []
    download(server.url, target, lambda done, total: progress.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert server.requested_ranges == [None, f"bytes={kept}-"]
    assert progress[0][0] > kept
    assert progress[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("change", ["another version", "no ranges"])
def test_partial_files_of_two_versions_are_never_joined(server: FileServer, tmp_path: Path, change: str) -> None:
    server.break_after = 1_500_000
    with pytest.raises(DataError):
        download(server.url, tmp_path / "file.gz")
    if change == "another version":
        server.content, server.tag = CONTENT[::-1], '"v2"'
    else:
        server.supports_ranges = False
    assert download(server.url, tmp_path / "file.gz").read_bytes() == server.content


def test_a_partial_file_that_is_already_complete_is_accepted(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(CONTENT)
    (tmp_path / "file.gz.part.json").write_text('{"version": "\\"v1\\""}')
    assert download(server.url, tmp_path / "file.gz").read_bytes() == CONTENT
    assert server.requested_ranges == [f"bytes={len(CONTENT)}-"]


def test_a_partial_file_of_unknown_version_is_discarded(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(b"something else")
    assert download(server.url, tmp_path / "file.gz").read_bytes() == CONTENT


def test_the_content_is_verified_against_a_checksum(server: FileServer, tmp_path: Path) -> None:
    good = hashlib.sha256(CONTENT).hexdigest()
    assert download(server.url, tmp_path / "good", sha256=good).exists()
    with pytest.raises(DataError, match="SHA-256"):
        download(server.url, tmp_path / "bad", sha256="0" * 64)
    assert [path.name for path in tmp_path.iterdir() if "bad" in path.name and path.suffix != ".json"] == []


def test_an_http_error_and_an_unreachable_server_raise_data_errors(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="answered 404"):
        download(server.url.replace("file", "none"), tmp_path / "file.gz")
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="again to continue"):
        download(server.url, tmp_path / "file.gz")
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_cannot_be_written_raises_a_home_error(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="cannot be written"):
        download(server.url, tmp_path / "file" / "file.gz")
