"""Downloads against a real HTTP server on loopback: resumed, checked, put in place whole."""

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
    """Serves one content with Range and If-Range; `break_after` cuts the next answer off after so many bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag = CONTENT, '"v1"'
        self.knows_ranges = True
        self.break_after: int | None = None
        self.ranges_asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.gz"


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.ranges_asked.append(asked)
        if self.path != "/file.gz":
            self.send_error(404)
            return
        start = 0
        if asked and server.knows_ranges and self.headers.get("If-Range") == server.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.tag)
        self.end_headers()
        self.wfile.write(body[: server.break_after])  # then the connection closes, early or not
        server.break_after = None

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FileServer() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_file_arrives_whole_with_its_progress(server: FileServer, tmp_path: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    path = download(server.url, tmp_path / "new" / "file.gz", lambda done, total: steps.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert [p.name for p in path.parent.iterdir()] == ["file.gz"]


def test_a_broken_download_is_continued_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "file.gz"
    server.break_after = 2_000_000
    with pytest.raises(DataError, match=r"broke off after \d+ bytes.*again to continue"):
        download(server.url, target)
    assert not target.exists()
    kept = (tmp_path / "file.gz.part").stat().st_size
    assert 0 < kept <= 2_000_000
    steps: list[tuple[int, int | None]] = []
    download(server.url, target, lambda done, total: steps.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert server.ranges_asked == [None, f"bytes={kept}-"]
    assert steps[0][0] > kept
    assert steps[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("change", ["another version", "no ranges"])
def test_parts_of_two_versions_are_never_joined(server: FileServer, tmp_path: Path, change: str) -> None:
    server.break_after = 1_500_000
    with pytest.raises(DataError):
        download(server.url, tmp_path / "file.gz")
    if change == "another version":
        server.content, server.tag = CONTENT[::-1], '"v2"'
    else:
        server.knows_ranges = False
    assert download(server.url, tmp_path / "file.gz").read_bytes() == server.content


def test_a_part_that_is_whole_already_is_accepted(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(CONTENT)
    (tmp_path / "file.gz.part.json").write_text('{"version": "\\"v1\\""}')
    assert download(server.url, tmp_path / "file.gz").read_bytes() == CONTENT
    assert server.ranges_asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_of_unknown_version_is_thrown_away(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.gz.part").write_bytes(b"something else")
    assert download(server.url, tmp_path / "file.gz").read_bytes() == CONTENT


def test_a_checksum_is_held_against_the_content(server: FileServer, tmp_path: Path) -> None:
    good = hashlib.sha256(CONTENT).hexdigest()
    assert download(server.url, tmp_path / "good", sha256=good).exists()
    with pytest.raises(DataError, match="SHA-256"):
        download(server.url, tmp_path / "bad", sha256="0" * 64)
    assert [path.name for path in tmp_path.iterdir() if "bad" in path.name and path.suffix != ".json"] == []


def test_a_refusal_and_a_dead_server_are_data_errors(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="answered 404"):
        download(server.url.replace("file", "none"), tmp_path / "file.gz")
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="again to continue"):
        download(server.url, tmp_path / "file.gz")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_home_error(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="cannot be written"):
        download(server.url, tmp_path / "file" / "file.gz")
