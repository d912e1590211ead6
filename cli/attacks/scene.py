"""The scratch home that attacks are tried on: a small dataset, an open session, two trials. No real home is touched.

An attack that changes files works on a copy of its own. `revealed_copy` gives copies of one home whose session was
finalized, so that the examiner runs once for all attacks on its records.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from ...data.catalogue import Catalogue
from ...data.demo import generate_demo
from ...data.errors import VirtualMLEError
from ...memory.records import TrialOutcome
from ...tools.finalize import finalize
from ...tools.open_session import open_session
from ...tools.results import FinalResult
from ...tools.run_trial import run_trial
from ...tools.workspace import Settings, Workspace
from ...tools.write_reflection import write_reflection
from .page import PAGE
from .verdict import Verdict, fell, held

Examine = Callable[[Path], Mapping[str, str]]  # the failed checks of `doctor` on a home, with their details
DATASET, LATE_ITEM = "shop", "only-bought-last"
USERS, ITEMS, LATE_BUYERS = 150, 60, 8  # more buyers than the k-core asks for: the item stays in the catalogue
SECONDS = 240.0  # for one command; the first import of torch from a cold disk takes a minute
SUMMARY = "A small model on a small log."


@dataclass
class Scene:
    """The scratch home and what is known about it from outside."""

    folder: Path
    base: Path  # never changed after it was built
    session: str
    log: Path
    test_times: Sequence[int]  # of the last event of every user; no two events of the log have the same time
    examine: Examine
    _revealed: list[Path] = field(default_factory=list)

    def copy(self, source: Path | None = None) -> Path:
        """A copy of the scratch home that an attack may change."""
        return Path(shutil.copytree(source or self.base, self.folder / f"home-{secrets.token_hex(4)}", symlinks=True))

    def revealed_copy(self) -> Path:
        """A copy of the scratch home after its session was finalized."""
        if not self._revealed:
            home = self.copy()
            finalized(home, self.session)
            self._revealed.append(home)
        return self.copy(self._revealed[0])

    def command(self, *words: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run one command of `virtualmle`, on a home if it takes one, as a person or a shell would."""
        command = [sys.executable, "-P", "-m", "virtualmle", *words, *(["--home", str(home)] if home else [])]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )

    def seen_or_fell(self, home: Path, detail: str) -> Verdict:
        """The verdict on an attack that succeeded: whether a check of `doctor` fails that did not fail before."""
        before = self.examine(self.base)
        found = [text for check, text in self.examine(home).items() if check not in before]
        return Verdict("seen", f"{detail}; doctor: {short(found[0])}") if found else fell(f"{detail}, unnoticed")


def build_scene(folder: Path, examine: Examine) -> Scene:
    """Prepare the dataset and run two trials. Raises VirtualMLEError if this machine cannot run a trial."""
    home = folder / "base"
    home.mkdir(mode=0o700)
    (home / "SANDBOX.md").write_text(PAGE, encoding="utf-8")
    log, frame = folder / f"{DATASET}.csv", hostile_log()
    frame.write_csv(log)
    times = frame.group_by("user").agg(pl.col("timestamp").max())["timestamp"].to_list()
    scene = Scene(folder, home, "", log, times, examine)
    added = scene.command("data", "add", DATASET, str(log), home=home)
    if added.returncode:
        raise VirtualMLEError(f"the scratch dataset cannot be prepared: {added.stderr.strip()}")
    with workspace(home) as ws:
        scene.session = open_session(ws, DATASET, "sasrec").session
        for changes in ({}, {"hidden_dim": 8}):
            trial = run_trial(ws, scene.session, dict(changes))
            if trial.status != "finished":
                raise VirtualMLEError(f"no trial can run on this machine: {trial.reason}")
            reflect(ws, scene.session, trial.trial)
    return scene


def hostile_log() -> pl.DataFrame:
    """The demo generator's log with a different time for every event, and an item that occurs in test events only."""
    frame = generate_demo(USERS, ITEMS).with_row_index("row").with_columns(pl.col("timestamp") + pl.col("row"))
    last = frame.sort("timestamp").group_by("user", maintain_order=True).last().head(LATE_BUYERS)
    late = last.with_columns(pl.lit(LATE_ITEM).alias("item"), pl.col("timestamp") + 40_000_000)
    return pl.concat([frame, late.select(frame.columns)]).drop("row")


@contextlib.contextmanager
def workspace(home: Path) -> Iterator[Workspace]:
    """The tools' view of a home, on the CPU and with one thread."""
    ws = Workspace.open(home, settings=Settings(device="cpu", threads=1))
    with ws.memory:
        yield ws


def reflect(ws: Workspace, session: str, trial: str, lesson: str = "A smaller model is quicker.") -> None:
    """Write the reflection that the next trial needs."""
    write_reflection(ws, session, trial, "unclear", "capacity", lesson)


def finalized(home: Path, session: str) -> FinalResult:
    """Finalize a session; raises VirtualMLEError if that is refused."""
    with workspace(home) as ws:
        return finalize(ws, session, SUMMARY, confirm=True)


def outcome_of(home: Path, session: str, trial: str) -> TrialOutcome | None:
    """What memory.db has recorded about a trial."""
    with workspace(home) as ws:
        return ws.memory.trials.get(session, trial).outcome


def dataset_directory(home: Path) -> Path:
    """The directory of the scratch dataset."""
    return Catalogue(home).path(DATASET)


def trial_directory(home: Path, session: str, trial: str) -> Path:
    """The directory of a trial's files."""
    return home / ".virtualmle" / "sessions" / session / trial


def overwrite(path: Path, content: bytes) -> None:
    """Overwrite a file in place, also a read-only one, as a process of its owner can."""
    path.chmod(0o600)
    path.write_bytes(content)


def refused(action: Callable[[], object]) -> str | None:
    """The message with which an action was refused; None if it was carried out."""
    try:
        action()
    except (VirtualMLEError, OSError) as error:
        return " ".join(str(error).split())
    return None


def short(text: str) -> str:
    """The beginning of a message, for a line of the table."""
    return text if len(text) <= 110 else f"{text[:110].rsplit(' ', 1)[0]} …"


def held_if_refused(action: Callable[[], object], success: str, scene: Scene, home: Path) -> Verdict:
    """Held if the action is refused; otherwise whether doctor reports it."""
    message = refused(action)
    return held(short(message)) if message else scene.seen_or_fell(home, success)


def visible_items(home: Path) -> set[int]:
    """The numbers of the items that occur in train or validation events."""
    directory = dataset_directory(home)
    arrays = [np.load(directory / f"{name}.npy") for name in ("items", "valid_items")]
    return set(np.concatenate(arrays).tolist())


def processes_below(home: Path) -> list[int]:
    """The pids of running trial workers of a home."""
    from psutil import NoSuchProcess, process_iter

    found = []
    for process in process_iter(["pid", "cmdline"]):
        with contextlib.suppress(NoSuchProcess):
            words = process.info["cmdline"] or []
            if any(word.startswith(str(home) + os.sep) for word in words) and "virtualmle.training.worker" in words:
                found.append(int(process.info["pid"]))
    return found
