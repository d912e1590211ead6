"""Evaluation on later data: figures equal those of a plain second implementation, and nothing is dropped silently."""

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from tests.exported import contents_of
from virtualmle.cli.app import app
from virtualmle.data.errors import ExportError
from virtualmle.data.prepared import PreparedDataset
from virtualmle.serving.artifact import write_export
from virtualmle.serving.evaluation import bands_of, evaluate_export
from virtualmle.serving.later_events import later_events
from virtualmle.serving.recommender import Recommender
from virtualmle.serving.sums import load_sums

KNOBS = {"transition_weight": 3.0, "transition_window": 2, "cooccurrence_weight": 1.0}
NEW = ("new-a", "new-b")


@pytest.fixture(scope="module")
def exported(tiny_dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_export(folder / "model", contents_of(tiny_dataset_dir, folder, ("sasrec", KNOBS)))
    return folder / "model"


@pytest.fixture(scope="module")
def logs(exported: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A log and the one before it: with unknown items, cold users, equal times, repeats, and rows in both logs."""
    items = [str(each) for each in Recommender.load(exported, "cpu").export.items.to_list()] + list(NEW)
    draw = np.random.default_rng(0)
    rows = [(f"u{draw.integers(40)}", items[draw.integers(len(items))], int(draw.integers(300))) for _ in range(500)]
    rows += [("only-new", NEW[0], 200), ("only-new", items[3], 210), ("single", items[0], 205)]
    log = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    before, later = log.filter(pl.col("timestamp") < 150), log.filter(pl.col("timestamp") >= 150)
    return pl.concat([later, before.head(3)]), before


def plain(
    exported: Path, dataset_dir: Path, later: pl.DataFrame, before: pl.DataFrame | None, targets: str
) -> dict[str, Any]:
    """The evaluation, event by event, in float64 and without any array of the package's own."""
    recommender, dataset = Recommender.load(exported, "cpu"), PreparedDataset.load(dataset_dir)
    ids = [str(each) for each in recommender.export.items.to_list()]
    trained = [dataset.items[a:b].tolist() for a, b in zip(dataset.offsets, dataset.offsets[1:], strict=False)]
    popularity = Counter(item for history in trained for item in history)
    logs = {item: math.log1p(popularity[item]) for item in range(len(ids))}
    prior = {item: logs[item] / max(logs.values()) for item in logs}
    followed, together, contained = Counter(), Counter(), Counter(i for h in trained for i in set(h))
    for history in trained:
        followed.update(zip(history, history[1:], strict=False))
        together.update((a, b) for a in set(history) for b in set(history) if a != b)
    totals = Counter()
    for (first, _), number in followed.items():
        totals[first] += number

    def score(name: str, history: list[int]) -> list[float]:
        if name == "popularity" or not history:
            return [float(popularity[item]) for item in range(len(ids))]
        if name == "model":
            found = recommender.score([ids[item] for item in history], ids)
            return [each.score for each in found]
        tie = [1e-4 * prior[item] for item in range(len(ids))]
        if name == "transitions":
            last = history[-1]
            return [tie[j] + (followed[last, j] / totals[last] if totals[last] else 0) for j in range(len(ids))]
        return [
            tie[j]
            + sum(together[i, j] / math.sqrt(contained[i] * contained[j]) for i in history[-5:] if together[i, j])
            for j in range(len(ids))
        ]

    frames = [] if before is None else [before.with_columns(later=pl.lit(False))]
    seen, events = set(), []
    for user, item, time, is_later in pl.concat([*frames, later.with_columns(later=pl.lit(True))]).iter_rows():
        if (user, item, time) not in seen:
            seen.add((user, item, time))
            events.append((time, len(events), user, item, is_later))
    of_user = defaultdict(list)
    for _, _, user, item, is_later in sorted(events):
        of_user[user].append((item, is_later))
    ranks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    lists = defaultdict(set)
    for user, mine in of_user.items():
        positions = [p for p, (_, is_later) in enumerate(mine) if is_later and p]
        chosen = {"all": positions, "next": positions[:1], "last": positions[-1:]}[targets]
        for p in chosen:
            history = [ids.index(item) for item, _ in mine[:p] if item in ids]
            target = ids.index(mine[p][0]) if mine[p][0] in ids else None
            for name in ("model", "popularity", "transitions", "cooccurrence"):
                scores = score(name, history)
                best = sorted((j for j in range(len(ids)) if j not in history), key=lambda j: (-scores[j], j))[:10]
                lists[name] |= set(best)
                candidates = [j for j in range(len(ids)) if j not in history or j == target]
                rank = math.inf if target is None else sum(scores[j] >= scores[target] for j in candidates)
                ranks[name][user].append(rank)
    return {"ranks": ranks, "coverage": {name: len(found) / len(ids) for name, found in lists.items()}}


def mean_and_half(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, 1.96 * math.sqrt(variance / len(values))


@pytest.mark.parametrize("targets", ["all", "next", "last"])
@pytest.mark.parametrize("with_history", [True, False])
def test_figures_equal_those_of_a_plain_implementation(targets, with_history, exported, tiny_dataset_dir, logs) -> None:
    later, before = logs[0], logs[1] if with_history else None
    recommender = Recommender.load(exported, "cpu")
    events = later_events(later, before, recommender.index, targets)
    result = evaluate_export(recommender, load_sums(exported), events).result
    expected = plain(exported, tiny_dataset_dir, later, before, targets)
    for name, of_users in expected["ranks"].items():
        scorer = result.model if name == "model" else result.baselines[name]
        assert scorer.coverage == pytest.approx(expected["coverage"][name])
        for k in (5, 10, 20):
            kinds = {
                "ndcg": lambda rank, k=k: 1 / math.log2(1 + rank) if rank <= k else 0.0,
                "recall": lambda rank, k=k: float(rank <= k),
                "mrr": lambda rank, k=k: 1 / rank if rank <= k else 0.0,
            }
            for kind, gain in kinds.items():
                per_user = [sum(map(gain, ranks)) / len(ranks) for ranks in of_users.values()]
                mean, half = mean_and_half(per_user)
                found = scorer.metrics[f"{kind}@{k}"]
                assert (found.value, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))


def test_unknown_items_cold_users_and_repeats_are_counted_and_unknown_items_are_missed(exported, logs) -> None:
    later, before = logs
    recommender = Recommender.load(exported, "cpu")
    events = later_events(later, before, recommender.index)
    result = evaluate_export(recommender, load_sums(exported), events).result
    counts, strata = result.counts, {each.name: each for each in result.strata}
    assert counts.in_both == 3
    assert counts.unknown_items == 2
    assert counts.targets + counts.cold_starts == later.unique().height - 3
    assert sum(strata[name].num_targets for name in strata if name != "cold starts") == counts.targets
    assert strata["unknown items"].metrics["ndcg@10"].value == 0
    assert strata["unknown items"].num_targets == counts.unknown_targets > 0
    assert counts.unknown_histories >= 1  # only-new: its history is an unknown item
    assert (counts.cold_starts, strata["cold starts"].num_targets) == (counts.cold_starts, counts.cold_starts)
    assert counts.cold_users >= 1  # single
    assert counts.repeated_targets > 0
    assert sum(strata[name].num_items for name in ("head", "middle", "tail")) == recommender.num_items


def test_bands_divide_the_events_in_thirds() -> None:
    assert bands_of(np.array([1, 6, 2, 3, 0])).tolist() == [2, 0, 2, 1, 2]
    assert bands_of(np.array([4, 4, 4])).tolist() == [0, 1, 2]


def test_a_log_without_anything_to_predict_and_unknown_targets_are_refused(exported) -> None:
    index = Recommender.load(exported, "cpu").index
    alone = pl.DataFrame({"user": ["a", "b"], "item": ["x", "x"], "timestamp": [1, 2]})
    with pytest.raises(ExportError, match="--history"):
        later_events(alone, None, index)
    with pytest.raises(ExportError, match="all, next, last"):
        later_events(alone, alone, index, "first")  # type: ignore[arg-type]


def test_the_command_prints_tables_or_json_and_needs_no_home(exported, logs, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    later, before = logs
    later.write_csv("later.csv")
    before.write_csv("before.csv")
    command = ["evaluate", str(exported), "later.csv", "--history", "before.csv", "--time-unit", "s"]
    command += ["--drop-bad-times"]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "160"})
    printed = CliRunner().invoke(app, [*command, "--json", "--targets", "next"])
    assert shown.exit_code == printed.exit_code == 0, (shown.exception, printed.exception)
    assert "item transitions" in shown.stdout and "cold starts" in shown.stdout
    found = json.loads(printed.stdout)
    assert set(found["baselines"]) == {"popularity", "transitions", "cooccurrence"}
    assert not (tmp_path / "memory.db").exists()
