"""What an interrupted export leaves beside its place is removed by the next one, and nothing else is."""

import os
import subprocess
import sys
from pathlib import Path

from virtualmle.serving.temporary import make_temporary

WRITER = """
import sys, time
from pathlib import Path
from virtualmle.serving.temporary import make_temporary
temporary, lock = make_temporary(Path(sys.argv[1]))
(temporary / "model.safetensors").write_bytes(b"weights")
print(temporary, flush=True)
time.sleep(600)
"""


def start_writer(directory: Path) -> tuple["subprocess.Popen[str]", Path]:
    """A process that is in the middle of writing an export to `directory`, and its hidden directory."""
    writer = subprocess.Popen([sys.executable, "-P", "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    with writer.stdout as stream:
        return writer, Path(stream.readline().strip())


def test_the_leftover_of_a_killed_writer_is_removed_and_that_of_a_live_one_is_not(tmp_path: Path):
    directory = tmp_path / "model"
    live, of_live = start_writer(directory)
    killed, of_killed = start_writer(directory)
    killed.kill()
    killed.wait()
    assert of_killed.exists(), "a killed writer cannot remove its directory"
    mine, lock = make_temporary(directory)
    assert {path for path in tmp_path.iterdir()} == {of_live, mine}
    os.close(lock)
    live.kill()
    live.wait()


def test_directories_of_other_exports_and_links_are_left_alone(tmp_path: Path):
    other, elsewhere = tmp_path / ".model-2.export-abc", tmp_path / "elsewhere"
    other.mkdir()
    elsewhere.mkdir()
    (tmp_path / ".model.export-link").symlink_to(elsewhere)
    (tmp_path / ".model.backup").mkdir()
    _, lock = make_temporary(tmp_path / "model")
    os.close(lock)
    assert other.is_dir() and elsewhere.is_dir() and (tmp_path / ".model.backup").is_dir()
