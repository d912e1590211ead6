"""A home with a session of five trials, written to memory.db directly: finished, swept, stopped, crashed, running."""

from pathlib import Path
from typing import Any

from tests.quick_home import QUICK_SANDBOX
from virtualmle.data.atomic import write_bytes
from virtualmle.examiner.request import TestResult
from virtualmle.examiner.vault import Vault
from virtualmle.memory.records import SessionRecord, TrialOutcome, TrialRecord
from virtualmle.memory.store import Memory
from virtualmle.models.config import make_config
from virtualmle.sandbox.protocol import parse_protocol
from virtualmle.training.spec import PROGRESS, TrialProgress, write_model

SESSION = "demo-sasrec-1"
CURVE = [
    {"epoch": epoch, "loss": 5.0 / epoch, "ndcg10": 0.01 * epoch, "train_seconds": 2.0, "evaluate_seconds": 0.5}
    for epoch in (1, 2, 3)
]


def tracked_home(home: Path) -> Path:
    """Write the session; its last trial is still running."""
    home.mkdir(parents=True, exist_ok=True)
    page = parse_protocol(QUICK_SANDBOX, source="SANDBOX.md")
    with Memory(home / "memory.db") as memory:
        memory.sessions.open(
            SessionRecord(
                id=SESSION, dataset="demo", dataset_id="d1", backbone="sasrec", protocol_hash=page.sha256,
                protocol_text=QUICK_SANDBOX, max_trials=9, max_train_seconds=600.0, parallel=2, profile={"users": 10},
            )
        )  # fmt: skip
        start(memory, hidden_dim=16)
        end(memory, "t001", 0.03)
        start(memory, hidden_dim=32)
        end(memory, "t002", 0.02)
        start(memory, batch_size=256)
        details = {"bound": 0.025, "stopped": {"epoch": 3}, "saved_seconds": 1.0}
        end(memory, "t003", None, status="stopped", verdict="discard", details=details)
        start(memory, batch_size=512)
        end(memory, "t004", None, status="crashed", verdict="crash", cause="out of memory")
        start(memory, transition_weight=4.0)
    progress = TrialProgress(stage="training", epoch=2, epochs=5, best_ndcg10=0.017)
    (home / ".virtualmle" / "sessions" / SESSION / "t005").mkdir(parents=True)
    write_model(home / ".virtualmle" / "sessions" / SESSION / "t005" / PROGRESS, progress)
    return home


def start(memory: Memory, **changes: Any) -> None:
    config = make_config("sasrec", **changes)
    memory.trials.start(
        TrialRecord(session=SESSION, handle="", number=0, base="default", changes=changes, config=config.model_dump(),
                    config_hash=str(changes), train_hash=str(changes))
    )  # fmt: skip


def end(memory: Memory, handle: str, ndcg: float | None, status: Any = "finished", **details: Any) -> None:
    metrics = {} if ndcg is None else {"ndcg@10": ndcg, "recall@10": 2 * ndcg}
    figures = {"verdict": "keep", "curve": CURVE, "parameters": 1000, "train_seconds": 7.5, **details}
    memory.trials.finish(SESSION, handle, TrialOutcome(status=status, metrics=metrics, **figures))


def close_session(home: Path) -> None:
    """End the running trial, freeze the session, and reveal a test result."""
    with Memory(home / "memory.db") as memory:
        end(memory, "t005", 0.05)
        memory.sessions.set_state(SESSION, "open", "frozen", selected="t005")
        memory.sessions.set_state(SESSION, "frozen", "attempted")
        memory.sessions.set_state(SESSION, "attempted", "revealed")
    result = TestResult(
        session=SESSION, trial="t005", dataset="demo", dataset_id="d1", metrics={"ndcg@10": 0.044}, ndcg10_se=0.001,
        ties=0, num_users=10, look=1, fingerprint_short="0" * 12, at="2026-11-27T00:00:00+00:00",
    )  # fmt: skip
    path = Vault(home).revealed_path(SESSION)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, result.model_dump_json().encode())
    report = home / ".virtualmle" / "reports" / f"{SESSION}.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("<p>report</p>", encoding="utf-8")
