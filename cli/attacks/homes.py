"""What the files of a home tell an agent that may read them; for the home of any tuning server, which is only read."""

import re
import stat
from collections.abc import Callable
from pathlib import Path

from .attack import Attack
from .verdict import Verdict, fell, held

TEXTS = {".json", ".jsonl", ".log", ".txt", ".md", ".csv", ".tsv", ".yaml", ".yml", ".html", ".out"}
MAX_BYTES = 64 << 20  # of one file
TEST_FIGURE = re.compile(
    rb"(?:\btest|\btst)[\s_\-./\"':]*(?:set|result|metrics?)?[\s_\-./\"':{]*"
    rb"(?:ndcg|recall|hit|hr|mrr|map|auc|precision|acc\w*|loss|rmse)[\w@\s\"':=|]{0,12}?0?\.\d{2,}",
    re.IGNORECASE,
)
PRIVATE_FOLDERS = {"vault", "reports"}  # of our own homes: for their owner, after the look
SHOWN = 60


def scan_home(home: Path, report: Callable[[Attack, Verdict], None]) -> list[tuple[Attack, Verdict]]:
    """Try two attacks on a real home by reading it."""
    attacks = (
        Attack("H1", f"read test figures in {home.name}", "shell", lambda _: figures_below(home)),
        Attack("H2", f"read {home.name} as another user", "shell", lambda _: open_files_below(home)),
    )
    tried = [(attacks[0], figures_below(home)), (attacks[1], open_files_below(home))]
    for attack, verdict in tried:
        report(attack, verdict)
    return tried


def figures_below(home: Path) -> Verdict:
    """Look for test metrics in text files, such as a log that is written after every run."""
    paths = [path for path in _files_below(home) if path.suffix.lower() in TEXTS and path.stat().st_size <= MAX_BYTES]
    for path in paths:
        found = TEST_FIGURE.search(path.read_bytes())
        if found:
            text = " ".join(found[0].decode(errors="replace").split())[:SHOWN]
            return fell(f"{path.relative_to(home)} has {text!r}")
    return held(f"no test figure stands in {len(paths)} text files")


def open_files_below(home: Path) -> Verdict:
    """Look for files that other users of the machine may read."""
    paths = _files_below(home)
    found = [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o044]
    if found and not stat.S_IMODE(home.stat().st_mode) & 0o011:
        return held("the directory is closed to others")
    if found:
        return fell(f"{len(found)} of {len(paths)} files are open to others, e.g. {found[0].name}")
    return held("no file is open to others")


def _files_below(home: Path) -> list[Path]:
    paths = (path for path in home.rglob("*") if not PRIVATE_FOLDERS & set(path.relative_to(home).parts))
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())
