"""Everything that an agent sees before the reveal is equal for two logs that differ in test labels only.

The session has what a session can have: racing, two trials at a time, and an ensemble.
"""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from virtualmle.data.demo import generate_demo
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.wait_trial import wait_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.trials.warm import retire

QUICK = {"epochs": 7, "patience": 7, "hidden_dim": 16, "batch_size": 128, "lr": 5e-3, "num_negatives": 100}
HOPELESS = {"weight_decay": 0.09}
TOGETHER = ({"weight_decay": 0.08}, {"weight_decay": 0.09, "num_heads": 2})  # both are discarded, in whatever order
SETTINGS = Settings(max_trials=9, threads=1, with_reflection=False, parallel=2, keep_warm=30, device="cpu")


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_an_agent_sees_the_same_if_only_test_labels_differ(tmp_path: Path, backbone: str) -> None:
    # without rare items, so that the k-core keeps all items and the exchange changes nothing but test labels
    frame = generate_demo().filter(pl.len().over("item") >= 10).sort("user", "timestamp", maintain_order=True)
    swapped = with_swapped_tests(frame)
    assert (frame["item"] != swapped["item"]).sum() > 500, "most test labels differ"
    first, second = (seen(tmp_path / name, log, backbone) for name, log in (("a", frame), ("b", swapped)))
    statuses = [observation["status"] for observation in first[1:6]]
    assert "stopped" in statuses and "finished" in statuses, statuses
    assert json.dumps(first, sort_keys=True, default=str) == json.dumps(second, sort_keys=True, default=str)


def with_swapped_tests(frame: pl.DataFrame) -> pl.DataFrame:
    """The log in which neighbouring users have exchanged the items of their last events."""
    last = frame["user"].is_last_distinct().arg_true().to_list()
    items = frame["item"].to_list()
    for one, other in zip(last[::2], last[1::2], strict=False):
        items[one], items[other] = items[other], items[one]
    return frame.with_columns(item=pl.Series(items))


def seen(home: Path, log: pl.DataFrame, backbone: str) -> list[Any]:
    """What the tools answer in a session on this log, without times."""
    home.mkdir()
    log.write_csv(home / "log.csv")
    ws = Workspace.open(home, settings=SETTINGS)
    ws.catalogue.add("log", home / "log.csv", public_key=ws.vault.public_key())
    opened = open_session(ws, "log", backbone)  # type: ignore[arg-type]
    session = opened.session
    answers = [opened, run_trial(ws, session, QUICK), run_trial(ws, session, HOPELESS)]
    started = [run_trial(ws, session, changes, wait_seconds=0).trial for changes in TOGETHER]
    for handle in started:
        wait_trial(ws, session, handle)
    answers += [wait_trial(ws, session, handle) for handle in started]  # once both have ended: it says what else runs
    whole = run_trial(ws, session, {"num_heads": 2, "epochs": 2})
    answers += [whole, run_trial(ws, session, {"ensemble": ["t001", whole.trial]})]
    answers += [read_memory(ws, session, view) for view in ("state", "trajectory", "long_term", "protocol")]
    for place in ws.inboxes(ws.memory.sessions.get(session)):
        retire(place)
    ws.close()
    return [without_times(answer.model_dump()) for answer in answers]


def without_times(value: object) -> Any:
    """The value without wall-clock times and memory, which differ from run to run."""
    if isinstance(value, dict):
        left_out = ("seconds", "bytes", "_at", "progress", "curve")
        return {key: without_times(each) for key, each in value.items() if not any(part in key for part in left_out)}
    return [without_times(each) for each in value] if isinstance(value, list) else value
