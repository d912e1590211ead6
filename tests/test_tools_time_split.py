"""A session on a dataset that is split by time: who is ranked, what the agent sees, and what the report says."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from virtualmle.data.demo import generate_demo
from virtualmle.data.histories import Histories
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.examiner.request import read_revealed
from virtualmle.examiner.vault import Vault
from virtualmle.memory.records import Hypothesis, SessionRecord, TrialOutcome, TrialRecord
from virtualmle.models.config import fingerprint, make_config, train_hash
from virtualmle.models.priors import ScorePriors
from virtualmle.report.gather import gather
from virtualmle.report.html import render
from virtualmle.report.split_agreement import MIN_COMMON
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.sandbox.statistics import kendall_tau
from virtualmle.tools.finalize import finalize
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.run_trial import run_trial
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.tools.write_reflection import write_reflection
from virtualmle.training.checkpoint import load_checkpoint
from virtualmle.training.evaluate import evaluate_targets
from virtualmle.training.metrics import metrics_from_ranks
from virtualmle.training.spec import CHECKPOINT, RANKS

BY_TIME = PrepareOptions(split="time", holdout="90d")
TINY = {"epochs": 1, "hidden_dim": 16, "batch_size": 512}
PRIORS = {"transition_weight": 8.0, "popularity_weight": 1.0}


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(tmp_path, settings=Settings(max_trials=6, threads=1))
    yield workspace
    workspace.close()


def ranks_by_hand(
    directory: Path, dataset: PreparedDataset, folder: Path, history_until: int, target_until: int
) -> np.ndarray:
    """Ranks of the first event from `history_until` on of each user, computed from the raw log and its original ids.

    Priors count events before the first cut only.
    """
    users, items = (
        pl.read_parquet(folder / f"{role}_ids.parquet")["original_id"].to_list() for role in ("user", "item")
    )
    number = {item: index for index, item in enumerate(items)}
    log = generate_demo().filter(pl.col("item").is_in(items)).sort("timestamp", maintain_order=True)
    histories, targets = [], []
    for user in users:
        mine = [(number[item], time) for _, item, time in log.filter(pl.col("user") == user).rows()]
        before = [item for item, time in mine if time < history_until]
        after = [item for item, time in mine if history_until <= time < target_until]
        if before and after:
            histories.append(before[-50:])
            targets.append(after[0])
    model, config = load_checkpoint(directory / CHECKPOINT)
    events = np.concatenate(histories).astype(np.int32)
    offsets = np.cumsum([0, *map(len, histories)])
    priors = ScorePriors.from_dataset(dataset, config)
    ranks, _ = evaluate_targets(
        model, config, Histories(events, offsets), np.array(targets, np.int32), priors, dataset.num_items
    )
    return ranks


def test_a_session_on_a_split_by_time_ranks_the_users_with_targets(ws: Workspace) -> None:
    name = ws.catalogue.resolve("demo", Vault(ws.home).public_key(), options=BY_TIME)
    brief = open_session(ws, name, "sasrec")
    assert brief.profile["split"] == "time, hold-out 90d" and any("split by time" in rule for rule in brief.rules)
    first = run_trial(ws, brief.session, TINY, Hypothesis(dimension="capacity"))
    write_reflection(ws, brief.session, first.trial, helped="unclear", dimension="capacity", lesson="small is quick")
    second = run_trial(ws, brief.session, PRIORS)
    assert second.base_delta is not None and second.metrics["ndcg@10"] > first.metrics["ndcg@10"]

    dataset, folder = ws.dataset(name), ws.catalogue.path(name)
    cuts = dataset.manifest.time_split
    assert cuts is not None and 0 < cuts.num_ranked < dataset.num_users
    directory = ws.trial_directory(brief.session, second.trial)
    by_hand = ranks_by_hand(directory, dataset, folder, cuts.valid_from, cuts.test_from)
    assert len(by_hand) == cuts.num_ranked
    assert np.count_nonzero(np.load(directory / RANKS) != by_hand) <= 1  # two scores may differ by rounding

    write_reflection(
        ws, brief.session, second.trial, helped="yes", dimension="scoring", lesson="transitions are strong"
    )
    final = finalize(ws, brief.session, "transitions carry this dataset", confirm=True)
    result = read_revealed(ws.home, brief.session)
    assert result is not None and (final.state, final.look, final.selected) == ("revealed", 1, second.trial)
    tested = ranks_by_hand(directory, dataset, folder, cuts.test_from, 2**40)
    assert result.num_users == len(tested)
    assert final.test == pytest.approx(metrics_from_ranks(tested), abs=2 / len(tested))
    page = render(gather(ws.home, brief.session))
    assert "Split: time, hold-out 90d." in page


def test_everything_an_agent_sees_is_identical_if_only_the_test_part_differs(tmp_path: Path) -> None:
    seen = []
    for variant in range(2):
        home = tmp_path / str(variant)
        ws = Workspace.open(home, settings=Settings(threads=1))
        log = home / "log.csv"
        log.write_text("\n".join(["user,item,time", *log_rows(variant)]))
        ws.catalogue.add("log", log, public_key=Vault(home).public_key(),
                         options=PrepareOptions(split="time", holdout="10d"))  # fmt: skip
        session = open_session(ws, "log", "sasrec")
        trial = run_trial(ws, session.session, TINY)
        views = [read_memory(ws, session.session, view) for view in ("state", "trajectory", "long_term")]
        page = render(gather(home, session.session))
        assert "sealed" in page
        seen.append(json.dumps([without_times(v.model_dump()) for v in (session, trial, *views)], sort_keys=True))
        ws.close()
    assert seen[0] == seen[1]


def log_rows(variant: int) -> list[str]:
    """60 users with an event a day for 40 days; in the last 10 days, the variants differ in users, items and number."""
    rows = [f"u{user},i{(user * 7 + day) % 20},{time(day)}" for user in range(60) for day in range(30)]
    sealed = range(60 + 20 * variant)
    rows += [f"u{user},i{(user * 3 + day) % (20 + variant)},{time(day)}" for user in sealed for day in range(30, 40)]
    return rows


def time(day: int) -> int:
    return 1_700_000_000 + 86_400 * day


def without_times(value: object) -> object:
    """The value without wall-clock times, which differ from run to run."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "seconds" not in k}
    return [without_times(v) for v in value] if isinstance(value, list) else value


# The order of configurations under two splits


def session_on(ws: Workspace, dataset: str, figures: list[float]) -> str:
    """A session with one finished trial per figure, with the same configurations on every dataset."""
    protocol, data = load_protocol(None), ws.manifest(dataset)
    session = ws.memory.sessions.open(
        SessionRecord(
            id="", dataset=dataset, dataset_id=data.dataset_id, backbone="sasrec", protocol_hash=protocol.sha256,
            protocol_text=protocol.text, max_trials=20, max_train_seconds=3600, profile=data.profile,
        )
    )  # fmt: skip
    for number, value in enumerate(figures):
        config = make_config("sasrec", hidden_dim=16 + 16 * number)
        record = ws.memory.trials.start(
            TrialRecord(
                session=session.id, handle="", number=0, base="default", changes={"hidden_dim": config.hidden_dim},
                config=config.model_dump(), config_hash=fingerprint(config.model_dump()), train_hash=train_hash(config),
            )
        )  # fmt: skip
        metrics = dict.fromkeys(("ndcg@10", "ndcg@5", "recall@10", "recall@5", "mrr"), value)
        outcome = TrialOutcome(status="finished", verdict="discard", reason="", metrics=metrics, ndcg_se=0.01)
        ws.memory.trials.finish(session.id, record.handle, outcome)
    return session.id


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        pytest.param([0.1, 0.2, 0.3, 0.4, 0.5], "the order of the configurations is similar: Kendall", id="equal"),
        pytest.param([0.5, 0.4, 0.3, 0.2, 0.1], "orders the configurations of this log differently", id="reversed"),
        pytest.param([0.1, 0.2], f"2 configurations measured on .* the order is compared from {MIN_COMMON}", id="few"),
    ],
)
def test_the_report_says_whether_two_splits_of_a_log_agree(ws: Workspace, figures: list[float], text: str) -> None:
    name = ws.catalogue.resolve("demo", Vault(ws.home).public_key(), options=BY_TIME)
    ws.dataset("demo")
    by_time = session_on(ws, name, figures)
    alone = gather(ws.home, by_time)
    assert alone.agreements == []
    leave_one_out = session_on(ws, "demo", [0.11, 0.21, 0.31, 0.41, 0.51])
    for session, other in ((by_time, "leave-one-out"), (leave_one_out, "time, hold-out 90d")):
        (agreement,) = gather(ws.home, session).agreements
        assert agreement.split == other and agreement.is_low == (figures == sorted(figures, reverse=True))
        assert pl.Series([agreement.sentence]).str.contains(text)[0], agreement.sentence
        assert agreement.sentence.replace("'", "&#39;") in render(gather(ws.home, session))


def test_kendalls_tau_counts_ties() -> None:
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(5 / 30**0.5)
    assert kendall_tau([1, 1], [1, 2]) == 0
