"""What a refit gains, on the event that follows all that a refitted model was trained on.

    python benchmarks/bench_refit.py office.tsv.gz

The last event of every user is cut off the log before it is prepared, so that these events are the script's own and no
look at a test set is needed. Each model is trained with the default early stopping on the train part of the remaining
log, and again on all of it for the selected number of epochs, as `export --refit` does. Both rank the events that
were cut off, after the same histories: bare, and with score priors that are counted on what the model was trained on.
Differences are paired over users, of the mean over the seeds.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import numpy as np
import torch
from numpy.typing import NDArray
from record import environment, parser_of

from virtualmle.data.histories import Histories
from virtualmle.data.prepare import order_events
from virtualmle.data.prepared import Counts, Manifest, PreparedDataset, PrepareOptions
from virtualmle.data.readers import read_log
from virtualmle.data.splits import Events, Split, split_events
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.models.priors import ScorePriors
from virtualmle.models.sequence_model import SequenceModel
from virtualmle.training.evaluate import evaluate_targets
from virtualmle.training.metrics import ndcg_per_user
from virtualmle.training.trainer import fit
from virtualmle.training.whole import train_whole

PRIORS = {"transition_weight": 8.0, "cooccurrence_weight": 4.0}
CPU = torch.device("cpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one row per backbone and kind of score, and one JSON line."""
    parser = parser_of(__doc__)
    parser.add_argument("log", type=Path, help="a log of users, items and timestamps")
    parser.add_argument("--backbones", nargs="+", default=["sasrec", "hstu"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--knobs", type=json.loads, default={}, help='JSON, e.g. {"loss": "full_softmax"}')
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    split, targets, num_items, num_lost = cut_off(options.log)
    train, whole = (dataset_of(split, num_items, all_events) for all_events in (False, True))
    rows = []
    for backbone in options.backbones:
        config = make_config(backbone, **options.knobs)
        rows += compare(config, train, whole, targets, options.seeds)
    print(
        f"{len(targets):,} users, {num_lost} of them with an item that is nowhere else; NDCG@10 on the events cut off\n"
    )
    print("| backbone, scores | trained on train | on all events | difference [95 %] | epochs | processor seconds |")
    print("|---|--:|--:|--:|--:|--:|")
    for row in rows:
        print("| {name} | {train:.4f} | {whole:.4f} | {difference:+.4f} [{low:+.4f}, {high:+.4f}] | {epochs} | "
              "{seconds:.0f} |".format(**row))  # fmt: skip
    print(json.dumps({"bench": "refit", "log": options.log.name, "rows": rows, **environment()}))
    return 0


def cut_off(log: Path) -> tuple[Split, NDArray[np.int32], int, int]:
    """The split of a log without the last event of every user; the items of these events; the number of all items, and
    of the users whose last item occurs nowhere else."""
    options = PrepareOptions()
    events = order_events(read_log(log).frame, options)
    last = events.offsets[1:] - 1
    kept = np.delete(np.arange(len(events.items)), last)
    targets = events.items[last].astype(np.int32)
    offsets = events.offsets - np.arange(len(events.offsets))
    rest = Events(events.items[kept], events.timestamps[kept], offsets, events.user_ids, events.item_ids,
                  Counts(users=0, items=0, interactions=0))  # fmt: skip
    num_items = len(events.item_ids)
    return split_events(rest, options.max_events), targets, num_items, int((~np.isin(targets, rest.items)).sum())


def dataset_of(split: Split, num_items: int, all_events: bool) -> PreparedDataset:
    """A dataset in memory: the train part of the split, or all of its events."""
    items, times, offsets = split.items, split.timestamps, split.offsets
    if all_events:
        for more, more_times in (
            (split.valid_items, split.valid_timestamps),
            (split.test_items, split.test_timestamps),
        ):
            items, times = np.insert(items, offsets[1:], more), np.insert(times, offsets[1:], more_times)
            offsets = offsets + np.arange(len(offsets))
    manifest = Manifest(
        name="cut", dataset_id="0" * 32, num_users=len(split.offsets) - 1, num_items=num_items,
        num_interactions=0, num_interactions_before_cut=0, rows_read=0, columns={}, options=PrepareOptions(),
        profile={}, files={},
    )  # fmt: skip
    arrays = {"items": items, "timestamps": times, "offsets": offsets, "valid_items": split.valid_items,
              "valid_timestamps": split.valid_timestamps}  # fmt: skip
    return PreparedDataset(Path(), manifest, arrays)


def compare(
    config: TrialConfig, train: PreparedDataset, whole: PreparedDataset, targets: NDArray[np.int32], seeds: int
) -> list[dict[str, object]]:
    """The rows of one backbone, bare and with priors."""
    histories = Histories(whole.items, whole.offsets, whole.timestamps)
    priors = config.model_copy(update=PRIORS)
    kinds = {"bare": (None, None), "with priors": tuple(ScorePriors.from_dataset(d, priors) for d in (train, whole))}
    ndcg: dict[str, list[NDArray[np.float64]]] = {f"{kind}{n}": [] for kind in kinds for n in (0, 1)}
    epochs, started = [], time.process_time()

    def rank(model: SequenceModel, prior: ScorePriors | None) -> NDArray[np.float64]:
        return ndcg_per_user(evaluate_targets(model, config, histories, targets, prior, whole.num_items)[0])

    for seed in range(seeds):
        fitted = fit(config, train, seed, CPU)
        again = train_whole(config, whole, seed, CPU, fitted.best_epoch)
        epochs.append(fitted.best_epoch)
        for kind, of_data in kinds.items():
            for n, model in enumerate((fitted.model, again)):
                ndcg[f"{kind}{n}"].append(rank(model, of_data[n]))
        print(f"{config.backbone}, seed {seed}: {fitted.best_epoch} epochs", file=sys.stderr, flush=True)
    rows = []
    for kind in kinds:
        before, after = (np.mean(ndcg[f"{kind}{n}"], axis=0) for n in (0, 1))
        difference = after - before
        half = 1.96 * float(difference.std(ddof=1)) / len(difference) ** 0.5
        mean = float(difference.mean())
        rows.append({
            "name": f"{config.backbone}, {kind}", "train": float(before.mean()), "whole": float(after.mean()),
            "difference": mean, "low": mean - half, "high": mean + half,
            "epochs": ", ".join(map(str, epochs)), "seconds": time.process_time() - started,
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main())
