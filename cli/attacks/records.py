"""Attacks of a shell of the same user on what was recorded: the seal, results, models, memory.db and the ledger."""

import io
import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...data.prepared import MANIFEST, SEALED, read_manifest
from ...data.seal import seal
from ...examiner.ledger import LEDGER
from ...examiner.vault import Vault
from ...tools.open_session import open_session
from ...tools.run_trial import run_trial
from ...tools.wait_trial import wait_trial
from ...training.spec import CHECKPOINT, RESULT
from .scene import (
    DATASET,
    Scene,
    dataset_directory,
    finalized,
    held_if_refused,
    outcome_of,
    overwrite,
    refused,
    short,
    trial_directory,
    workspace,
)
from .verdict import Verdict, fell, held

CLAIMED = 0.99
POLL_SECONDS, POLLS = 0.2, 600


def forge_the_seal(scene: Scene) -> Verdict:
    """Seal the validation targets as test targets, with the public key that everybody can read, and finalize."""
    home = scene.copy()
    directory = dataset_directory(home)
    items, times = (np.load(directory / f"valid_{name}.npy") for name in ("items", "timestamps"))
    manifest = read_manifest(directory)
    payload = io.BytesIO()
    np.savez(payload, items=items, timestamps=times, fingerprint=np.frombuffer(b"0" * 64, np.uint8))
    overwrite(directory / SEALED, seal(payload.getvalue(), Vault(home).public_key(), manifest.dataset_id))
    return held_if_refused(
        lambda: finalized(home, scene.session), "a look was taken at targets that the attacker sealed", scene, home
    )


def edit_the_profile(scene: Scene) -> Verdict:
    """Edit the profile in the manifest and open a session that gets it as its brief."""
    home = scene.copy()
    path = dataset_directory(home) / MANIFEST
    content = json.loads(path.read_bytes())
    content["profile"]["users"] = 999_999
    overwrite(path, json.dumps(content).encode())
    with workspace(home) as ws:
        return held_if_refused(
            lambda: open_session(ws, DATASET, "hstu"), "a session was opened with an edited profile", scene, home
        )


def edit_a_result(scene: Scene) -> Verdict:
    """Edit result.json of a trial that has ended before the server reads it."""
    home = scene.copy()
    with workspace(home) as ws:
        running = run_trial(ws, scene.session, {"hidden_dim": 24}, wait_seconds=0.0)
        path = trial_directory(home, scene.session, running.trial) / RESULT
        for _ in range(POLLS):
            if path.exists():
                break
            time.sleep(POLL_SECONDS)
        content = json.loads(path.read_bytes())
        content["metrics"]["ndcg@10"] = CLAIMED
        overwrite(path, json.dumps(content).encode())
        message = refused(lambda: wait_trial(ws, scene.session, running.trial))
    outcome = outcome_of(home, scene.session, running.trial)
    if outcome is None or outcome.metrics.get("ndcg@10") != CLAIMED:
        return held(f"the edited figure was not recorded: {short(message or (outcome.reason if outcome else ''))}")
    return scene.seen_or_fell(home, f"an edited result was recorded as NDCG@10 {CLAIMED}")


def swap_the_model(scene: Scene) -> Verdict:
    """Put another trial's weights in the place of the selected trial's, and finalize."""
    home = scene.copy()
    directories = [trial_directory(home, scene.session, trial) for trial in ("t001", "t002")]
    best = max(("t001", "t002"), key=lambda trial: _ndcg(home, scene.session, trial))
    source, target = sorted(directories, key=lambda directory: directory.name == best)
    content = (source / CHECKPOINT).read_bytes()
    overwrite(target / CHECKPOINT, content)
    return held_if_refused(
        lambda: finalized(home, scene.session), "another model than the selected one was examined", scene, home
    )


def rewrite_a_trial(scene: Scene) -> Verdict:
    """Drop the triggers of memory.db and rewrite the recorded figures of a trial."""
    home = scene.revealed_copy()
    changed = rewrite(home / "memory.db", [
        f"""UPDATE trials SET metrics = json_set(metrics, '$."ndcg@10"', {CLAIMED}) WHERE handle = 't001'"""
    ])  # fmt: skip
    if not changed:
        return held("memory.db could not be rewritten")
    return scene.seen_or_fell(home, f"the recorded NDCG@10 of t001 is now {CLAIMED}")


def reopen_a_session(scene: Scene) -> Verdict:
    """Drop the triggers of memory.db, open a revealed session again and run a trial in it."""
    home = scene.revealed_copy()
    rewrite(home / "memory.db", ["UPDATE sessions SET state = 'open', selected = NULL, frozen_at = NULL"])
    with workspace(home) as ws:
        return held_if_refused(
            lambda: run_trial(ws, scene.session, {"transition_weight": 3.0}),
            "a revealed session took a further trial", scene, home,
        )  # fmt: skip


def forget_a_look(scene: Scene) -> Verdict:
    """Drop the triggers of the ledger and delete the row of a look."""
    home = scene.revealed_copy()
    rewrite(Vault(home).directory / LEDGER, ["DELETE FROM look"])
    return scene.seen_or_fell(home, "a look was deleted from the ledger")


def delete_the_ledger(scene: Scene) -> Verdict:
    """Delete the ledger's file."""
    home = scene.revealed_copy()
    for path in Vault(home).directory.glob(f"{LEDGER}*"):
        path.unlink()
    return scene.seen_or_fell(home, "the ledger was deleted")


def edit_a_revealed_result(scene: Scene) -> Verdict:
    """Edit the test figures in the vault."""
    home = scene.revealed_copy()
    path = Vault(home).revealed_path(scene.session)
    content = json.loads(path.read_bytes())
    content["metrics"]["ndcg@10"] = CLAIMED
    overwrite(path, json.dumps(content).encode())
    return scene.seen_or_fell(home, f"the revealed test NDCG@10 is now {CLAIMED}")


def edit_a_receipt(scene: Scene) -> Verdict:
    """Edit a figure in the receipt of a session, and verify it as an outsider would."""
    home = scene.revealed_copy()
    receipts = sorted((Vault(home).directory / "receipts").glob("*.json"))
    if not receipts:
        return fell("sessions leave no receipt that an outsider could verify")
    original = receipts[0].read_text(encoding="utf-8")
    if scene.command("verify", str(receipts[0])).returncode:
        return fell("an unchanged receipt is refused, so that a refusal says nothing")
    shown = json.loads(Vault(home).revealed_path(scene.session).read_bytes())["metrics"]["ndcg@10"]
    forged = original.replace(repr(shown), repr(CLAIMED))
    if forged == original:
        forged = original.replace("t001", "t002")
    overwrite(receipts[0], forged.encode())
    verified = scene.command("verify", str(receipts[0]))
    if verified.returncode != 1 or "FAIL" not in verified.stdout:
        return fell("an edited receipt was verified")
    return held(short(next(line for line in verified.stdout.splitlines() if line.startswith("FAIL"))))


def rewrite(database: Path, statements: Sequence[str]) -> bool:
    """Drop all triggers of an SQLite file and run the statements; returns whether a row was changed."""
    connection = sqlite3.connect(database)
    try:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f'DROP TRIGGER "{name}"')
        changed = sum(connection.execute(statement).rowcount for statement in statements)
        connection.commit()
    finally:
        connection.close()
    return changed > 0


def _ndcg(home: Path, session: str, trial: str) -> float:
    outcome = outcome_of(home, session, trial)
    return outcome.metrics["ndcg@10"] if outcome else 0.0
