"""The statistics and the table of bench_agents.py."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 4000
SHORT, MIDDLE = 5, 10  # the table also shows the best figure after this many trials


def running_best(figures: Sequence[float | None]) -> list[float]:
    """The best figure so far after each trial; None is a trial without a figure."""
    best, curve = 0.0, []
    for figure in figures:
        best = max(best, figure or 0.0)
        curve.append(best)
    return curve


def trials_to(curve: Sequence[float], level: float) -> float:
    """The number of the first trial that reaches `level`; infinite if none does."""
    return next((number for number, best in enumerate(curve, 1) if best >= level), math.inf)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95 % percentile bootstrap interval; infinite values are censored observations."""
    samples = np.random.default_rng(0).choice(np.array(values, dtype=float), size=(RESAMPLES, len(values)))
    medians = np.sort([statistics.median_high(sample) for sample in samples])
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]
    return statistics.median_high(values), float(low), float(high)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided permutation test of paired differences: share of sign patterns with as large a |mean|."""
    values = np.array(differences, dtype=float)
    patterns = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
    means = np.abs((np.where(patterns, 1, -1) * values).mean(1))
    return float((means >= abs(values.mean()) * (1 - 1e-12)).mean())


def summary_of(sessions: Sequence[dict[str, Any]], arm: str) -> dict[str, Any] | None:
    """The figures of an arm, and its comparison with random search and the engineer on the same backbones and seeds."""
    curves = {(s["arm"], s["backbone"], s["seed"]): running_best([t["ndcg@10"] for t in s["trials"]]) for s in sessions}
    pairs = sorted((b, s) for a, b, s in curves if a == arm)
    if not pairs:
        return None
    own = [curves[arm, *pair] for pair in pairs]
    best = [curve[-1] for curve in own]
    row: dict[str, Any] = {
        "sessions": len(own),
        "best": statistics.fmean(best),
        "best_sd": statistics.stdev(best) if len(best) > 1 else 0.0,
        "after": {count: statistics.fmean(c[min(count, len(c)) - 1] for c in own) for count in (SHORT, MIDDLE)},
    }
    for other, at in (("random", -1), ("engineer", MIDDLE - 1)):
        shared = [pair for pair in pairs if (other, *pair) in curves]
        if not shared:
            continue
        levels = {pair: curves[other, *pair][min(at, len(curves[other, *pair]) - 1)] for pair in shared}
        row[f"trials_to_{other}"] = median_interval([trials_to(curves[arm, *p], levels[p]) for p in shared])
        if other != arm:
            differences = [curves[arm, *p][-1] - curves[other, *p][-1] for p in shared]
            row[f"against_{other}"] = {"delta": statistics.fmean(differences), "p": sign_flip_p(differences)}
    return row


def table(summaries: dict[str, dict[str, dict[str, Any]]], trials: int) -> str:
    """Markdown: a row per backbone and arm."""

    def reached(row: dict[str, Any], name: str) -> str:
        texts = [f"> {trials}" if math.isinf(v) else f"{v:g}" for v in row.get(name, ())]
        return f"{texts[0]} [{texts[1]}, {texts[2]}]" if texts else ""

    def compared(row: dict[str, Any], name: str) -> str:
        found = row.get(name)
        return f"{found['delta']:+.4f} (p {found['p']:.3f})" if found else ""

    lines = [
        f"| backbone | arm | n | best of {trials} | best of {SHORT} | best of {MIDDLE} | trials to random's best "
        f"| trials to the engineer's best of {MIDDLE} | against random | against engineer |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for backbone, arms in summaries.items():
        for arm, row in arms.items():
            lines.append(
                f"| {backbone} | {arm} | {row['sessions']} | {row['best']:.4f} ± {row['best_sd']:.4f} "
                f"| {row['after'][SHORT]:.4f} | {row['after'][MIDDLE]:.4f} | {reached(row, 'trials_to_random')} "
                f"| {reached(row, 'trials_to_engineer')} | {compared(row, 'against_random')} "
                f"| {compared(row, 'against_engineer')} |"
            )
    return "\n".join(lines)
