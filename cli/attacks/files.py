"""Attacks that only read the files of a home, or put other files in the place of known ones."""

import contextlib
import os
import stat
from pathlib import Path

import polars as pl

from ...data.prepared import ITEM_IDS, SEALED
from ...tools.open_session import open_session
from ...tools.run_trial import run_trial
from ...tools.workspace import Settings, Workspace
from .scene import (
    DATASET,
    LATE_ITEM,
    Scene,
    dataset_directory,
    held_if_refused,
    overwrite,
    reflect,
    short,
    visible_items,
    workspace,
)
from .verdict import Verdict, fell, held

WARM_SECONDS = 60.0


def find_test_times(scene: Scene) -> Verdict:
    """Look for the times of test events, as numbers of 8 bytes and as text, in every file of the home."""
    home = scene.revealed_copy()
    for path in files_below(home):
        content = path.read_bytes() if path.name != SEALED else b""
        for time in scene.test_times:
            if time.to_bytes(8, "little") in content or str(time).encode() in content:
                return fell(f"{path.relative_to(home)} holds the time of a test event")
    return held(f"none of {len(scene.test_times)} test events stands in a file in the clear")


def read_late_item_ids(scene: Scene) -> Verdict:
    """Read which items occur in test events only from the names of the catalogue."""
    path = dataset_directory(scene.base) / ITEM_IDS
    names = pl.read_parquet(path).get_column(pl.read_parquet(path).columns[0]).cast(pl.String).to_list()
    late = [name for number, name in enumerate(names) if number not in visible_items(scene.base)]
    if LATE_ITEM in late:
        return fell(f"{ITEM_IDS} names {LATE_ITEM!r}, which occurs in test events only")
    return held("items without a visible event have no name until the look")


def read_as_another_user(scene: Scene) -> Verdict:
    """Look for files and folders of the home that other users of the machine may read."""
    if os.name != "posix":
        return held("file modes are POSIX")
    home = scene.revealed_copy()
    inside = [path for root in ("memory.db", ".virtualmle") for path in with_everything_below(home / root)]
    found = [path for path in inside if stat.S_IMODE(path.lstat().st_mode) & 0o077 and not path.is_symlink()]
    if found and os.access(home, os.X_OK):
        return fell(f"{len(found)} of {len(inside)} files and folders are open to others, e.g. {found[0].name}")
    return held(f"all {len(inside)} files and folders are for their owner only")


def link_a_dataset(scene: Scene) -> Verdict:
    """Put a symbolic link to a directory elsewhere in the place of the dataset, and open a session on it."""
    home = scene.copy()
    directory = dataset_directory(home)
    target = home / "elsewhere"
    directory.rename(target)
    directory.symlink_to(target)
    with workspace(home) as ws:
        return held_if_refused(lambda: open_session(ws, DATASET, "hstu"), "a linked dataset was used", scene, home)


def overwrite_validation_targets(scene: Scene) -> Verdict:
    """Overwrite the validation targets after a warm worker has verified them, and run another trial on it."""
    home = scene.copy()
    ws = Workspace.open(home, settings=Settings(device="cpu", threads=1, keep_warm=WARM_SECONDS))
    with ws.memory:
        first = run_trial(ws, scene.session, {"hidden_dim": 24})
        reflect(ws, scene.session, first.trial)
        path = dataset_directory(home) / "valid_items.npy"
        content = path.read_bytes()
        overwrite(path, content[:-400] + content[-4:] * 100)  # the last 100 users get the same target
        try:
            second = run_trial(ws, scene.session, {"hidden_dim": 32})
        except ValueError as error:
            return held(short(" ".join(str(error).split())))
        finally:
            for inbox in ws.inboxes(ws.memory.sessions.get(scene.session)):
                with contextlib.suppress(OSError):
                    inbox.rename(inbox.with_name(f"{inbox.name}-closed"))  # the warm worker exits
    if second.status == "finished":
        return scene.seen_or_fell(home, "a trial was measured against overwritten validation targets")
    return held(short(second.reason))


def files_below(folder: Path) -> list[Path]:
    """Every regular file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def with_everything_below(path: Path) -> list[Path]:
    """A file, or a folder and everything below it."""
    return [path, *path.rglob("*")] if path.exists() else []
