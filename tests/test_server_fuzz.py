"""Fuzzed calls of all tools against a server over stdio; `fuzz_tools.py` says what is sent and what must hold."""

from pathlib import Path

from tests.fuzz_tools import fuzz


def test_fuzzed_calls_get_answers_and_leave_a_valid_home(tmp_path: Path, tiny_dataset_dir: Path) -> None:
    folder = tmp_path / "fuzzed"
    folder.mkdir()
    counts = fuzz(folder, tiny_dataset_dir, num_calls=300, seed=16)
    assert counts["valid answered"] > 30 and counts["mutated"] > 60 and counts["raw"] > 10, counts
