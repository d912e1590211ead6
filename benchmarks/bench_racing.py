"""What racing loses and saves: the rule of training/racing.py, replayed on recorded learning curves.

    python benchmarks/bench_racing.py --save

For each dataset and backbone, random orders of the recorded trials are replayed as sessions of --length trials, with
the Program's verdicts. *Lost*: of the trials that would have been kept at their end, the share that the rule stops.
*Saved*: of the seconds of all trials, the share that the rule does not spend. *Best*: the best NDCG@10 of a raced
session over that of the session without racing. *Ceiling*: the share that a rule would save which knows how every
trial ends, and stops those that would not be kept after epoch 3. *Bounds held*: of the stopped trials, the share whose
final NDCG@10 is at most the bound that the rule gave. A slow starter had less than half of its final NDCG@10
after a quarter of the epochs to its best one. With memory, the rule also knows the curves of the other datasets.
`curves/collect.py` recorded the trials, and `curves/engineer.py` those with score priors.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves both out
sys.path.insert(0, str(Path(__file__).parent / "curves"))

import numpy as np
from held_out import GRID, held_out
from raced import Raced, pools_of
from record import RESULTS, environment, parser_of, save
from recorded import CURVES, WITH_PRIORS, read_curves
from replay import Pool, is_slow_starter, orders, play

Row = dict[str, object]
PROVENANCE = """\
The rows **all** are means over the six pools. Saved is far below the 50 % that the rule was meant to save: a family
that has not run to its end is not raced, and costs its full seconds. Lost is below 2 % in the mean of random orders
with the constants of the code, but not in every row. Small pools say little: their sessions have 6 or 12 trials, of
which the first of each family run to their end; in the recorded order, the one lost trial is one of 8 of its pool.

The constants were chosen on Office; LOW_POPULARITY, and that the family does not bound a low curve, after a look at the
trials that were lost on Tools and Beauty. No dataset is therefore an untouched test, and the first three tables are
optimistic. In the last one, STEEPEST and LOW_POPULARITY are chosen without the dataset on which they are measured: they
are the ones that save most with at most 2 % lost on the other two, and they lose far more on Tools, SASRec. The other
constants are those of the code there, too. Trials recur in the 30 orders, so that a lost share rests on few independent
trials.

Trials with score priors are judged with them: the sessions of the engineer are on Office, with models of width at most
32 and at most 12 epochs. LEAST_ELASTICITY was chosen on 17 of their 23 trials. Re-scorings cost nothing and are not
raced. Ceiling is the share that a rule would save which knows how every trial ends and stops after epoch 3. The table
of held-out constants was measured before score priors were compared, which change nothing on its trials."""
TITLES = {
    "with": "Random orders, with curves of the other datasets in memory",
    "without": "Random orders, without memory",
    "recorded": "The session `climb` in its recorded order, without memory",
    "held out": "Random orders, without memory, constants chosen on the other datasets",
    "engineer": "Sessions of the engineer with score priors, in their recorded order, without memory",
    "engineer shuffled": "The same, the trials after the first sweep in random orders",
}
HEAD = ("trials", "slow", "would be kept", "lost", "slow lost", "stopped", "slow stopped", "saved", "ceiling", "best",
        "bounds held")  # fmt: skip


def row_of(rule: Raced, pool: Pool, sessions: Sequence[Sequence[int]]) -> Row:
    """The figures of many replays of a pool, with the rule and without it."""
    raced, full = ([play(pool, one, racing) for one in sessions] for racing in (rule, None))
    indices = np.concatenate([played.order for played in raced])
    slow = np.array([is_slow_starter(curve) for curve in pool.curves])[indices]
    keep, stopped, lost = (
        np.concatenate([getattr(played, name) for played in raced]) for name in ("would_keep", "stopped", "lost")
    )
    seconds, spent, oracle = (
        sum(sum(getattr(played, name)) for played in raced) for name in ("full_seconds", "seconds", "oracle_seconds")
    )
    return {
        "trials": len(pool),
        "slow": sum(is_slow_starter(curve) for curve in pool.curves),
        "would be kept": int(keep.sum()),
        "lost": _share(lost, keep),
        "slow lost": _share(lost & slow, keep & slow),
        "stopped": float(stopped.mean()),
        "slow stopped": _share(stopped & slow, slow),
        "saved": 1 - spent / seconds,
        "ceiling": 1 - oracle / seconds,
        "best": float(np.mean([one.best / other.best for one, other in zip(raced, full, strict=True)])),
        "bounds held": _share(np.array([final <= bound for bound, final in rule.bounds]), np.ones(len(rule.bounds))),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return float(part.sum() / whole.sum()) if whole.any() else float("nan")


def table(rows: dict[str, Row]) -> str:
    """The rows as Markdown."""
    lines = [f"| trials of | {' | '.join(HEAD)} |", "|---|" + "--:|" * len(HEAD)]
    lines += [f"| {name} | {' | '.join(_cell(key, row[key]) for key in HEAD)} |" for name, row in rows.items()]
    return "\n".join(lines)


def _cell(key: str, value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    assert isinstance(value, float)
    if np.isnan(value):
        return "-"
    return f"{value:.4f}" if key == "best" else f"{value:.1%}"


def recorded_order(pools: dict[str, Pool], session: str) -> dict[str, Row]:
    """A session of each pool in the order in which it was recorded."""
    rows = {}
    for name, pool in pools.items():
        order = [index for index, curve in enumerate(pool.curves) if curve.session == session]
        rows[name] = row_of(Raced(pool, []), pool, [order])
    rows["**all**"] = total(list(rows.values()))
    return rows


def total(rows: Sequence[Row]) -> Row:
    """The mean over datasets and backbones, each with the same weight; counts are sums."""
    values = {key: [row[key] for row in rows] for key in HEAD}
    return {
        key: sum(found) if isinstance(found[0], int) else float(np.nanmean(found))  # type: ignore[arg-type]
        for key, found in values.items()
    }


def chosen(rows: dict[str, Row]) -> str:
    """Which constants were chosen for each dataset."""
    lines = {name.split()[0]: ", ".join(f"{key} {row[key]}" for key in GRID) for name, row in rows.items()}
    return "Chosen without " + "; without ".join(f"{name}: {text}" for name, text in lines.items()) + "."


def shuffled(pools: dict[str, Pool], sessions: int) -> dict[str, Row]:
    """The trials of each pool in random orders, but for those until its first sweep, which come first."""
    rows = {}
    for name, pool in pools.items():
        rng = np.random.default_rng(len(rows))
        swept = next((index for index, curve in enumerate(pool.curves) if curve.rescored), len(pool) - 1) + 1
        found = [[*range(swept), *(swept + rng.permutation(len(pool) - swept)).tolist()] for _ in range(sessions)]
        rows[name] = row_of(Raced(pool, []), pool, found)
    rows["**all**"] = total(list(rows.values()))
    return rows


def measure(pools: dict[str, Pool], with_memory: bool, arguments: argparse.Namespace) -> dict[str, Row]:
    """One row per pool, and their mean."""
    rows = {}
    for name, pool in pools.items():
        rule = Raced(pool, [other for other in pools.values() if other is not pool] if with_memory else [])
        sessions = orders(pool, arguments.sessions, arguments.length, seed=len(rows))
        rows[name] = row_of(rule, pool, sessions)
    rows["**all**"] = total(list(rows.values()))
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--with-priors", type=Path, default=WITH_PRIORS)
    parser.add_argument("--sessions", type=int, default=100, help="replays for each dataset and backbone")
    parser.add_argument("--length", type=int, default=30, help="trials of a session, at most")
    parser.add_argument("--held-out", action="store_true", help="choose constants on the other datasets, too")
    parser.add_argument("--save", action="store_true", help="write results/racing.md and .json")
    arguments = parser.parse_args()
    pools = pools_of(read_curves(arguments.curves))
    found = {name: measure(pools, name == "with", arguments) for name in ("with", "without")}
    found["recorded"] = recorded_order(pools, "climb")
    if arguments.held_out:
        rows = held_out(pools, lambda: measure(pools, False, arguments))
        found["held out"] = {**rows, "**all**": total(list(rows.values()))}
    with_priors = pools_of(read_curves(arguments.with_priors))
    found["engineer"] = recorded_order(with_priors, "engineer")
    found["engineer shuffled"] = shuffled(with_priors, arguments.sessions)
    text = "\n\n".join(f"## {TITLES[name]}\n\n{table(rows)}" for name, rows in found.items())
    text += f"\n\n{chosen(rows)}" if arguments.held_out else ""
    record = {**environment(), "sessions": arguments.sessions, "length": arguments.length, "rows": found}
    print(text)
    if arguments.save:
        save(RESULTS / "racing", record, f"# What racing loses and saves\n\n{PROVENANCE}\n\n{text}\n")
    print(json.dumps(record, default=str))


if __name__ == "__main__":
    main()
