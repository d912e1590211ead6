"""What the k-core of all events gives away: the gain of a scorer that knows which items lack visible events.

    python benchmarks/bench_core_leak.py office.tsv.gz beauty.tsv.gz

With leave-one-out and a 5-core of all events, every item has five events or more, so an item with fewer visible events
has the rest in test (or among events that were cut off). The attack adds weight * max(0, 5 - visible events) to the
score of every item: a matrix of rank one, the same for all users. Scores are standardised per user before.

The test targets are taken from the raw log by this script, in memory: no home, no seal and no look is involved, and
nothing here is a figure of a tuned model. The weight is varied, and the best one is chosen on the test targets
themselves, which is an upper bound of what somebody without them can gain. The column "validation" is what an agent
would see of the same weights: the deficit counts validation events as visible, so their items are not favoured.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import numpy as np
import torch
from bench_refit import dataset_of
from numpy.typing import NDArray
from record import environment, parser_of
from torch import Tensor

from virtualmle.data.histories import Histories
from virtualmle.data.prepare import order_events
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import read_log
from virtualmle.data.splits import Split, split_events
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.models.priors import PriorTables
from virtualmle.training.baselines import TIE_WEIGHT
from virtualmle.training.catalogue_scores import ItemFactors, joint_factors, joint_users, score_blocks
from virtualmle.training.evaluate import encode_users
from virtualmle.training.metrics import ndcg_per_user
from virtualmle.training.ranking import rank_variants
from virtualmle.training.trainer import fit

K_CORE = 5
WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
BLOCK_USERS = 512
CPU = torch.device("cpu")

Items = NDArray[np.int32]
Block = Callable[[Histories], Tensor]
"""The scores float32 (num_users, num_items) of some users' histories."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print two tables and one JSON line."""
    parser = parser_of(__doc__)
    parser.add_argument("logs", type=Path, nargs="+", help="logs of users, items and timestamps")
    parser.add_argument("--knobs", type=json.loads, default={}, help='of SASRec, as JSON: {"epochs": 20}')
    parser.add_argument("--without-model", action="store_true", help="measure the baselines only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shares, gains = [], []
    for log in options.logs:
        name = log.name.split(".")[0]
        prepared = PrepareOptions(k_core=K_CORE)
        split = split_events(order_events(read_log(log).frame, prepared), prepared.max_events)
        num_items = 1 + int(max(part.max() for part in (split.items, split.valid_items, split.test_items)))
        shares.append({"log": name, **share_of(split, num_items)})
        config = None if options.without_model else make_config("sasrec", **options.knobs)
        gains += gains_of(name, split, num_items, config)
    print_shares(shares)
    print_gains(gains)
    print(json.dumps({"bench": "core_leak", "shares": shares, "gains": gains, **environment()}))
    return 0


def deficit_of(split: Split, num_items: int) -> NDArray[np.int64]:
    """How many visible events each item lacks to K_CORE, (num_items,)."""
    visible = np.concatenate([split.items, split.valid_items])
    return np.maximum(0, K_CORE - np.bincount(visible, minlength=num_items))


def share_of(split: Split, num_items: int) -> dict[str, float]:
    """How many items lack visible events, and which share of the targets they are."""
    deficit = deficit_of(split, num_items)
    return {
        "items": num_items,
        "lacking": int((deficit > 0).sum()),
        "unseen": int((np.bincount(np.concatenate([split.items, split.valid_items]), minlength=num_items) == 0).sum()),
        "pinned": int(deficit.sum()),
        "users": len(split.test_items),
        "valid_share": float((deficit[split.valid_items] > 0).mean()),
        "test_share": float((deficit[split.test_items] > 0).mean()),
    }


def gains_of(name: str, split: Split, num_items: int, config: TrialConfig | None) -> list[dict[str, object]]:
    """The rows of one log: NDCG@10 of every scorer and weight on validation and on test."""
    train = dataset_of(split, num_items, all_events=False)
    bonus = torch.tensor(deficit_of(split, num_items), dtype=torch.float32)
    tasks = {"validation": (train.train_histories(), split.valid_items),
             "test": (train.visible_histories(), split.test_items)}  # fmt: skip
    rows = []
    for scorer, block in scorers_of(train, config):
        found = {task: weighted(block, bonus, *about) for task, about in tasks.items()}
        for position, weight in enumerate(WEIGHTS):
            gain = found["test"][position] - found["test"][0]
            rows.append({
                "log": name, "scorer": scorer, "weight": weight,
                **{task: float(values[position].mean()) for task, values in found.items()},
                "gain": float(gain.mean()), "half": 1.96 * float(gain.std(ddof=1)) / len(gain) ** 0.5,
            })  # fmt: skip
        print(f"{name}, {scorer}: done", file=sys.stderr, flush=True)
    return rows


def scorers_of(train: PreparedDataset, config: TrialConfig | None) -> Iterator[tuple[str, Block]]:
    """Popularity, transitions of the last item, and SASRec with `config`, if any; all from the train part."""
    counts = torch.tensor(np.bincount(train.items, minlength=train.num_items), dtype=torch.float32).log1p()
    yield "popularity", lambda histories: counts.expand(len(histories.offsets) - 1, -1).clone()
    prior = PriorTables(train).priors(make_config("sasrec", transition_weight=1.0, popularity_weight=TIE_WEIGHT))
    assert prior is not None  # its weight is not 0

    def transitions(histories: Histories) -> Tensor:
        scores = torch.zeros(len(histories.offsets) - 1, train.num_items)
        items, offsets = torch.tensor(np.asarray(histories.items)), torch.tensor(np.asarray(histories.offsets))
        return prior.add_to(scores, items, offsets, normalised=True)

    yield "transitions", transitions
    if config is None:
        return
    model = fit(config, train, 0, CPU).model
    own = [ItemFactors(model.items.catalogue())]
    factors = joint_factors(own)

    def sasrec(histories: Histories) -> Tensor:
        users = joint_users(own, [model.items.scaled(encode_users(model, config, histories))])
        items, offsets = torch.tensor(np.asarray(histories.items)).long(), torch.tensor(np.asarray(histories.offsets))
        (scores,) = score_blocks(factors, users, items, offsets, [None])(0, len(offsets) - 1)
        return scores.clone()

    yield "sasrec", sasrec


@torch.inference_mode()
def weighted(block: Block, bonus: Tensor, histories: Histories, targets: Items) -> list[NDArray[np.float64]]:
    """NDCG@10 per user (num_users,) for every weight."""
    parts = []
    for first in range(0, len(targets), BLOCK_USERS):
        some = np.arange(first, min(first + BLOCK_USERS, len(targets)))
        mine = histories.of_users(some)
        scores = block(mine)
        scores = (scores - scores.mean(dim=1, keepdim=True)) / scores.std(dim=1, keepdim=True).clamp(min=1e-9)
        parts.append(ranks_of([scores + weight * bonus for weight in WEIGHTS], mine, targets[some]))
    return [ndcg_per_user(np.concatenate(of_weight)) for of_weight in zip(*parts, strict=True)]


def ranks_of(variants: Sequence[Tensor], histories: Histories, targets: Items) -> list[Items]:
    """The ranks of the targets by each of the score matrices, as a trial ranks them."""
    items, offsets = torch.tensor(np.asarray(histories.items)), torch.tensor(np.asarray(histories.offsets))
    found = rank_variants(lambda *_: variants, items, offsets, torch.tensor(targets), len(targets))
    return [ranks for ranks, _ in found]


def print_shares(rows: Sequence[dict[str, object]]) -> None:
    """The table of what the counts say."""
    print("| log | items | with fewer than 5 visible events | with none | their missing events | share of validation "
          "targets | of test targets |\n|---|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    for row in rows:
        print("| {log} | {items:,} | {lacking:,} | {unseen:,} | {pinned:,} of {users:,} | {valid_share:.1%} | "
              "{test_share:.1%} |".format(**row))  # fmt: skip


def print_gains(rows: Sequence[dict[str, object]]) -> None:
    """The table of what the attack gains."""
    print("\n| log, scorer | weight | validation NDCG@10 | test NDCG@10 | gain on test [95 %] |\n|---|--:|--:|--:|--:|")
    for row in rows:
        print("| {log}, {scorer} | {weight:g} | {validation:.4f} | {test:.4f} | {gain:+.4f} ± {half:.4f} |"
              .format(**row))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
