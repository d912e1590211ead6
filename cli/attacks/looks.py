"""Attacks on the look: a wrong key, a second look, the same data under another name, and operator mode."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from ...examiner.operator_keys import create_keys, read_public_keys, sign
from ...examiner.request import MODULE, examine, looks
from ...examiner.vault import PRIVATE, VERIFY, Vault, read_key
from ...tools.finalize import finalize
from ...tools.open_session import open_session
from ...tools.revealing import bring_back
from .scene import (
    SECONDS,
    SUMMARY,
    Scene,
    dataset_directory,
    finalized,
    refused,
    short,
    trial_directory,
    workspace,
)
from .verdict import Verdict, fell, held

IMPOSTOR = "import time; time.sleep(600)"


def open_with_another_key(scene: Scene) -> Verdict:
    """Ask the examiner to open the seal with a key that it was not sealed for."""
    home = scene.copy()
    key, _ = create_keys(home / "keys")
    model = trial_directory(home, scene.session, "t001")
    message = refused(
        lambda: examine(home, scene.session, "t001", [model], dataset_directory(home), SECONDS, key_file=key)
    )
    if message is None:
        return fell("another key opened the seal")
    return held(short(message)) if not looks(home) else fell("a refused key used the session's look")


def look_twice(scene: Scene) -> Verdict:
    """Finalize a revealed session again, through the tool and through the examiner itself."""
    home = scene.revealed_copy()
    model = trial_directory(home, scene.session, "t001")
    by_tool = refused(lambda: finalized(home, scene.session))
    by_examiner = refused(
        lambda: examine(home, scene.session, "t002", [model], dataset_directory(home), SECONDS)
    )
    if by_tool and by_examiner and len(looks(home)) == 1:
        return held(short(by_tool))
    return fell(f"the ledger has {len(looks(home))} looks of one session")


def look_at_a_near_duplicate(scene: Scene) -> Verdict:
    """Register the same log with other names, shuffled, in other units and without one user; look at it, too."""
    home = scene.revealed_copy()
    frame = pl.read_csv(scene.log)
    last = frame["user"].unique().sort()[-1]
    changed = frame.filter(pl.col("user") != last).with_columns(
        pl.col("user").str.replace("u", "customer-"), "x" + pl.col("item"), pl.col("timestamp") * 1000
    )
    file = home / "renamed.csv"
    changed.sample(fraction=1.0, shuffle=True, seed=1).write_csv(file)
    options = ("--agent", "random", "--trials", "1", "--device", "cpu", "--threads", "1", "--keep-warm", "0")
    for words in (("data", "add", "other", str(file)), ("tune", "other", *options)):
        done = scene.command(*words, home=home)
        if done.returncode:
            return fell(f"could not be tried: {short(done.stderr.strip().splitlines()[-1])}")
    last_look = looks(home)[-1]
    if last_look.look == 1:
        return fell("the same test targets under other names gave look 1 again")
    return held(f"counted as look {last_look.look} at the same content")


def finalize_without_the_key(scene: Scene) -> Verdict:
    """Finalize in operator mode, and bring back an answer that the attacker has signed with a key of his own."""
    home = scene.copy()
    _, public = create_keys(home / "keys")
    attackers, _ = create_keys(home / "attacker")
    vault = Vault(home).directory
    (vault / PRIVATE).rename(home / "keys" / "kept-elsewhere")
    verifying = read_public_keys(public).verifying
    assert verifying is not None  # create_keys writes both halves
    (vault / VERIFY).write_bytes(verifying)
    with workspace(home) as ws:
        state = finalize(ws, scene.session, SUMMARY, confirm=True).state
        forged, text = home / "answer.json", json.dumps(_forged(scene))
        forged.write_text(json.dumps({"signed": text, "signature": sign(read_key(attackers), text.encode()).hex()}))
        message = refused(lambda: bring_back(ws, scene.session, forged))
    if state == "frozen" and message and not looks(home):
        return held(f"finalize left a sealed choice; {short(message)}")
    return fell(f"the session is {state} although the key is not here")


def keep_finalize_waiting(scene: Scene) -> Verdict:
    """Run a process with the examiner's words in its arguments, as any user of the machine can, and finalize."""
    home = scene.copy()
    with impostor(home, scene.session):
        message = refused(lambda: finalized(home, scene.session))
    return fell(f"finalize was refused: {short(message)}") if message else held("finalize did not wait for it")


def fill_the_sessions(scene: Scene) -> Verdict:
    """Open session after session on the same data, for as many trials and looks."""
    home = scene.copy()
    with workspace(home) as ws:
        for number in range(2, 9):
            message = refused(lambda: open_session(ws, "shop", "sasrec", new=True))
            if message:
                return held(f"the session after {number - 1} was refused: {short(message)}")
    return fell("8 sessions were opened on the same data")


@contextlib.contextmanager
def impostor(home: Path, session: str) -> Iterator[None]:
    """A foreign process that looks like the examiner of a session on its command line."""
    words = [MODULE, "--home", str(home.resolve()), "--session", session, "--trial", "t001"]
    with subprocess.Popen([sys.executable, "-c", IMPOSTOR, *words], stdin=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def _forged(scene: Scene) -> dict[str, object]:
    """An answer of the right form with invented figures."""
    result = {
        "session": scene.session, "trial": "t001", "dataset": "shop", "dataset_id": "0", "metrics": {"ndcg@10": 0.99},
        "ndcg10_se": 0.0, "ties": 0, "num_users": 1, "look": 1, "fingerprint_short": "0", "at": "2026-01-01",
    }  # fmt: skip
    return {"choice": "0" * 64, "fingerprint": "0" * 64, "result": result}


