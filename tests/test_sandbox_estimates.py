"""Estimates of what trials take, compared with what the trials of recorded sessions then took."""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from tests.small_parts import train_part
from virtualmle.memory.records import SessionRecord, TrialOutcome, TrialRecord
from virtualmle.models.build import build_model
from virtualmle.models.config import continuation_hash, make_config, train_hash
from virtualmle.sandbox.estimates import MEGABYTE, TAUGHT_BYTES, estimate_of, scaled_to
from virtualmle.training.checkpoint import LoadedModel
from virtualmle.training.teachers import TeacherTargets

CURVES = Path(__file__).parents[1] / "benchmarks" / "curves" / "curves.parquet"
ITEMS = {"office": 2420, "tools": 10217, "beauty": 12101}


def session(name: str = "s", dataset: str = "office", **profile: Any) -> SessionRecord:
    return SessionRecord(
        id=name, dataset=dataset, dataset_id=dataset, backbone="sasrec", protocol_hash="", protocol_text="",
        max_trials=20, max_train_seconds=3600, profile={"items": ITEMS[dataset], **profile},
    )  # fmt: skip


def trial(number: int = 1, *, seconds: float = 2.0, epochs: int = 10, owner: str = "s", **more: Any) -> TrialRecord:
    """A finished trial of so many epochs that took so many seconds each; `more`: changes, backbone, details, wall."""
    details, wall, backbone = more.pop("details", {}), more.pop("wall", 0.0), more.pop("backbone", "sasrec")
    limit = {} if "curve" in more else {"epochs": epochs}
    curve = more.pop("curve", None) or [
        {"epoch": n, "ndcg10": 0.01 * n, "train_seconds": 0.75 * seconds, "evaluate_seconds": 0.25 * seconds}
        for n in range(1, epochs + 1)
    ]
    config = make_config(backbone, **{**limit, **more.pop("changes", {})})
    outcome = TrialOutcome(
        status="finished", verdict="keep", metrics={"ndcg@10": 0.05}, curve=curve, details=details,
        train_seconds=seconds * epochs, wall_seconds=wall, **more,
    )  # fmt: skip
    return TrialRecord(
        session=owner, handle=f"t{number:03}", number=number, base="default", changes={}, config=config.model_dump(),
        config_hash="", train_hash=train_hash(config), status="finished", outcome=outcome,
    )  # fmt: skip


def recorded_sessions() -> dict[tuple[str, str, str], list[tuple[TrialRecord, float]]]:
    """The trials of each recorded session in their order, and the seconds that each one took."""
    found: dict[tuple[str, str, str], list[tuple[TrialRecord, float]]] = defaultdict(list)
    rows = pl.read_parquet(CURVES, columns=[name for name in pl.read_parquet_schema(CURVES) if name != "ranks"])
    for row in rows.sort("number").to_dicts():
        seconds = sum(row["train_seconds"]) + sum(row["evaluate_seconds"])
        if row["cause"] or not seconds:
            continue
        names = ("loss", "ndcg10", "train_seconds", "evaluate_seconds")
        curve = [
            {"epoch": epoch, **dict(zip(names, values, strict=True))}
            for epoch, values in enumerate(zip(*(row[name] for name in names), strict=True), 1)
        ]
        record = trial(row["number"], curve=curve, backbone=row["backbone"], changes=json.loads(row["changes"]))
        found[row["dataset"], row["backbone"], row["session"]].append((record, seconds))
    return dict(found)


def same_training(one: TrialRecord, other: TrialRecord) -> bool:
    """Whether a session would continue or re-score one of them; the recorded trials were all trained from scratch."""
    return continuation_hash(one.configuration) == continuation_hash(other.configuration)


@pytest.mark.skipif(not CURVES.exists(), reason="the recorded sessions are in the repository only")
@pytest.mark.parametrize(("kind", "share"), [("climb", 0.8), ("draw", 0.7)])
def test_estimates_of_recorded_sessions_are_right_in_the_median_and_good_to_a_factor_of_two(
    kind: str, share: float
) -> None:
    ratios = []
    for (dataset, _, name), trials in recorded_sessions().items():
        for n in range(1, len(trials) if name == kind else 0):
            record, took = trials[n]
            known = [before for before, _ in trials[:n] if not same_training(before, record)]
            if known:
                found = estimate_of(record.configuration, session(dataset=dataset), known)
                assert found.seconds is not None
                ratios.append(found.seconds / took)
    assert len(ratios) >= 70
    assert 0.9 < statistics.median(ratios) < 1.1
    assert sum(0.5 <= ratio <= 2 for ratio in ratios) / len(ratios) > share


def test_the_first_trial_of_a_session_is_estimated_from_other_sessions_scaled_to_its_data() -> None:
    here, same = session(interactions=1000), session("old", interactions=1000)
    larger = session("big", "tools", interactions=4000)
    config = make_config("sasrec", epochs=10)
    found = estimate_of(config, here, [], scaled_to(here, same, [trial(owner="old", wall=23.0)]))
    assert (found.seconds, found.wall_seconds) == (20.0, 23.0) and "scaled from those of old/t001" in found.basis
    found = estimate_of(config, here, [], scaled_to(here, larger, [trial(owner="big")]))
    assert found.seconds == 5.0, "an epoch over a quarter of the interactions"
    own = estimate_of(config, here, [trial(seconds=3.0, changes={"lr": 1e-3})], [trial(owner="old")])
    assert own.seconds == 30.0 and "of t001" in own.basis, "the session's own trials come first"
    assert scaled_to(session(), larger, [trial(owner="big")]) == [], "without sizes, nothing can be scaled"


def test_an_estimate_without_a_measurement_says_why_it_has_none() -> None:
    found = estimate_of(make_config("sasrec"), session(), [])
    assert (found.seconds, found.wall_seconds, found.memory_mb) == (None, None, None)
    assert found.basis == (
        "seconds: unknown, no trial has finished here or in a similar session; "
        "memory: unknown, the peak of no trial was measured"
    )


def test_a_rescoring_is_said_to_be_one() -> None:
    config = make_config("sasrec", epochs=10, transition_weight=4.0)
    found = estimate_of(config, session(), [trial()])
    assert found.seconds == 0.5 and found.basis.startswith("seconds: only scores again")


def test_epochs_that_are_trained_already_are_not_counted() -> None:
    found = estimate_of(make_config("sasrec", epochs=15), session(), [trial()])
    assert found.seconds == 10.0 and "5 epochs (10 more are trained already), scaled from those of t001" in found.basis


def test_memory_is_a_measured_peak_and_what_a_wider_item_table_adds() -> None:
    known = trial(changes={"hidden_dim": 64}, details={"peak_bytes": 500 * MEGABYTE})
    wide = estimate_of(make_config("sasrec", hidden_dim=192), session("s", items=MEGABYTE // 64), [known])
    assert wide.memory_mb == 500 + 128 * 16 // 64
    assert "peak of t001 + 32 MB for the wider item table; not that of a GPU" in wide.basis
    narrow = estimate_of(make_config("sasrec", hidden_dim=32), session(), [known])
    assert narrow.memory_mb == 500, "a smaller table takes nothing from what was measured"


def test_memory_counts_what_teachers_predict_unless_the_measured_trial_had_some() -> None:
    config = make_config("sasrec", hidden_dim=8)
    teacher = LoadedModel(build_model(config, 50, seed=0).eval(), config)
    kept = TeacherTargets([teacher], train_part([[0, 1, 2], [3, 40]], 50), torch.device("cpu"))
    per_event = (kept.columns.nbytes + kept.shares.nbytes) // 5
    student, about = make_config("sasrec", teachers="t001"), session("s", items=10, interactions=MEGABYTE)
    plain = estimate_of(student, about, [trial(details={"peak_bytes": 500 * MEGABYTE})])
    assert per_event == TAUGHT_BYTES and plain.memory_mb == 500 + per_event
    assert "peak of t001 + 256 MB for what the teachers predict; not" in plain.basis
    taught = trial(2, changes={"teachers": "t001"}, details={"peak_bytes": 700 * MEGABYTE})
    assert estimate_of(student, about, [taught]).memory_mb == 700
