"""How well the sketch of a log separates near-duplicates of it from different logs.

Makes near-duplicates of each log by the changes of TRANSFORMS, each with the names kept and with all users and items
renamed, and compares their sketches with that of the log. Different logs are the other logs, and parts of one log that
have no test target in common: halves of the users, halves of the time, halves of the catalogue. Prints the similarities
as tables, then one JSON line, and measures the seconds of a sketch.

    python benchmarks/bench_content_sketch.py ../shared/data/*.tsv.gz --save
    python benchmarks/bench_content_sketch.py         # the demo and synthetic logs only
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import numpy as np
import polars as pl
from record import RESULTS, environment, parser_of, save

from virtualmle.data.demo import generate_demo
from virtualmle.data.readers import read_log
from virtualmle.data.sketch import FAMILIES, SAME_CONTENT, Sketch, log_sketch, similarities, similarity

Change = Callable[[pl.DataFrame], pl.DataFrame]


def main() -> None:
    """Make the logs, compare all pairs and print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("logs", type=Path, nargs="*", help="files of real logs")
    parser.add_argument("--save", action="store_true", help="write results/content-sketch.json and .md")
    arguments = parser.parse_args()
    logs = {path.name.partition(".")[0]: _columns(read_log(path).frame) for path in arguments.logs} | synthetic()
    sketches = {name: log_sketch(frame) for name, frame in logs.items()}
    seconds = {name: _seconds(frame) for name, frame in logs.items()}
    near = [row for name, frame in logs.items() for row in near_duplicates(name, frame, sketches[name])]
    different = [(f"{one} / {two}", *_compare(sketches[one], sketches[two])) for one, two in combinations(logs, 2)]
    different += [row for name, frame in logs.items() for row in disjoint_parts(name, frame)]
    sizes = {name: (frame.height, *seconds[name]) for name, frame in logs.items()}
    text = tables(near, different, sizes)
    record = {
        "bench": "content_sketch",
        **environment(),
        "threshold": SAME_CONTENT,
        "near": near,
        "different": different,
        "sizes": sizes,
    }
    if arguments.save:
        command = "python benchmarks/bench_content_sketch.py ../shared/data/*.tsv.gz --save"
        head = f"{__doc__.splitlines()[0]} `{command}` at commit {record['commit']}, on {record['hardware']}."
        save(RESULTS / "content-sketch", record, f"# The sketch of a log\n\n{head}\n\n{text}")
    print(text)
    print(json.dumps(record))


def _columns(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("user", "item", "timestamp")


def synthetic() -> dict[str, pl.DataFrame]:
    """Logs of the demo's generator: the demo, the same sizes under another seed, and a larger one. They share names."""
    larger = generate_demo(num_users=3000, num_items=800, seed=5)
    return {"demo": generate_demo(), "demo-seed-2": generate_demo(seed=2), "demo-large": larger}


def _seconds(frame: pl.DataFrame) -> tuple[float, float]:
    """Median wall-clock and processor seconds of three sketches."""
    walls, cpus = [], []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        log_sketch(frame)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus)


def _compare(one: Sketch, other: Sketch) -> tuple[float, str, list[float]]:
    best = similarity(one, other)
    return best.share, best.family, [each.share for each in similarities(one, other)]


def near_duplicates(name: str, frame: pl.DataFrame, sketch: Sketch) -> Iterator[tuple[str, str, str, float, str]]:
    """Per change, the similarity to the log with the names kept and with all names replaced."""
    for change, apply in TRANSFORMS.items():
        changed = apply(frame)
        if changed["user"].n_unique() < 20:
            continue
        for names, copy in (("kept", changed), ("replaced", renamed(changed))):
            share, family, _ = _compare(log_sketch(copy), sketch)
            yield name, change, names, share, family


def disjoint_parts(name: str, frame: pl.DataFrame) -> Iterator[tuple[str, float, str, list[float]]]:
    """Pairs of parts of one log that have no test target in common."""
    middle = frame["timestamp"].median()
    users, items = (_half(frame[column]) for column in ("user", "item"))
    parts = {
        "halves of the users": pl.col("user").is_in(users),
        "halves of the time": pl.col("timestamp") <= middle,
        "halves of the catalogue": pl.col("item").is_in(items),
    }
    for part, chosen in parts.items():
        yield f"{name}: {part}", *_compare(log_sketch(frame.filter(chosen)), log_sketch(frame.filter(~chosen)))


def _half(ids: pl.Series) -> list[str]:
    return ids.unique().sort().sample(fraction=0.5, seed=7).to_list()


def renamed(frame: pl.DataFrame) -> pl.DataFrame:
    """The log under new names, whose order is that of neither the old names nor the rows."""
    for column in ("user", "item"):
        old = frame[column].unique().sort()
        new = old.len() - 1 - np.random.default_rng(3).permutation(old.len())
        names = pl.DataFrame({column: old, "new": [f"{column[0]}-{number}" for number in new]})
        frame = frame.join(names, on=column, maintain_order="left").drop(column).rename({"new": column})
    return frame


def without_users(share: float) -> Change:
    return lambda frame: frame.filter(~pl.col("user").is_in(_chosen(frame["user"], share)))


def _chosen(ids: pl.Series, share: float) -> list[str]:
    return ids.unique().sort().sample(fraction=share, seed=11).to_list()


def with_users(frame: pl.DataFrame) -> pl.DataFrame:
    """2 % more users, who have the items of two others at times between theirs."""
    chosen = frame.filter(pl.col("user").is_in(_chosen(frame["user"], 0.02)))
    added = chosen.with_columns(user="new-" + pl.col("user"), item=pl.col("item").shuffle(seed=5))
    return pl.concat([frame, added.select(frame.columns)])


def without_rows(share: float) -> Change:
    return lambda frame: frame.sample(fraction=1 - share, seed=13)


def in_core(k: int) -> Change:
    """Filtered before it is registered, which differs from the option of `data add`."""

    def apply(frame: pl.DataFrame) -> pl.DataFrame:
        while True:
            left = frame.filter((pl.len().over("user") >= k) & (pl.len().over("item") >= k))
            if left.height == frame.height:
                return left
            frame = left

    return apply


def at(times: pl.Expr) -> Change:
    return lambda frame: frame.with_columns(timestamp=times.cast(pl.Int64))


def _curved(frame: pl.DataFrame) -> pl.DataFrame:
    """Times replaced by an increasing function of them that is not linear."""
    first, last = frame["timestamp"].min(), frame["timestamp"].max()
    position = (pl.col("timestamp") - first) / max(last - first, 1)
    return frame.with_columns(timestamp=(position**2 * 1e15).cast(pl.Int64))


LATEST = pl.col("timestamp").rank("ordinal", descending=True).over("user")
TRANSFORMS: dict[str, Change] = {
    "rows shuffled": lambda frame: frame.sample(fraction=1, shuffle=True, seed=1),
    "times × 1000": at(pl.col("timestamp") * 1000),
    "times + 10 years": at(pl.col("timestamp") + 315_576_000),
    "times mapped to a curve": _curved,
    "times as dense ranks of each user": at(pl.col("timestamp").rank("dense").over("user")),
    "one user dropped": lambda frame: frame.filter(pl.col("user") != frame["user"][frame.height // 2]),
    "one row dropped": lambda frame: pl.concat([frame[: frame.height // 2], frame[frame.height // 2 + 1 :]]),
    "1 % of the users dropped": without_users(0.01),
    "5 % of the users dropped": without_users(0.05),
    "2 % users added": with_users,
    "1 % of the rows dropped": without_rows(0.01),
    "5 % of the rows dropped": without_rows(0.05),
    "3-core": in_core(3),
    "5-core": in_core(5),
    "10-core": in_core(10),
    "last 50 events of each user": lambda frame: frame.filter(LATEST <= 50),
    "curve, and 5 % of the users dropped": lambda frame: _curved(without_users(0.05)(frame)),
    "curve, and 5 % of the rows dropped": lambda frame: _curved(without_rows(0.05)(frame)),
}


def tables(near: list, different: list, sizes: dict) -> str:
    """Near-duplicates by change, different logs by pair, and the cost, as Markdown."""
    names = list(sizes)
    lines = [f"Two logs count as the same content from a similarity of {SAME_CONTENT:g} on.", ""]
    for kind in ("kept", "replaced"):
        found = {(name, change): (share, family) for name, change, names_, share, family in near if names_ == kind}
        lines += [f"**Near-duplicates, names {kind}**", "", f"| change | {' | '.join(names)} |"]
        lines += [f"|---|{'--:|' * len(names)}"]
        for change in TRANSFORMS:
            cells = [_cell(found.get((name, change))) for name in names]
            lines.append(f"| {change} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["**Different logs**", "", f"| pair | similarity | {' | '.join(FAMILIES)} |", f"|---|--:|{'--:|' * 5}"]
    for pair, share, _, shares in sorted(different, key=lambda row: -row[1]):
        lines.append(f"| {pair} | {share:.3f} | {' | '.join(f'{each:.3f}' for each in shares)} |")
    lines += ["", "**Cost of a sketch** (median of three)", "", "| log | rows | seconds | processor seconds |"]
    lines += ["|---|--:|--:|--:|"]
    lines += [f"| {name} | {rows:,} | {wall:.2f} | {cpu:.2f} |" for name, (rows, wall, cpu) in sizes.items()]
    return "\n".join([*lines, ""])


def _cell(found: tuple[float, str] | None) -> str:
    if not found:
        return "–"
    share, family = found
    return f"{share:.2f} {family}" if share >= SAME_CONTENT else f"**{share:.2f}**"


if __name__ == "__main__":
    main()
