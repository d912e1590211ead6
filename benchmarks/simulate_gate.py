"""How often the gate keeps a configuration that is no better: 500 truly equal ones, many sessions, the real Program.

Each session draws K configurations of equal quality. What a trial measures is, per user, the user's own NDCG@10 plus
the luck of that training run; luck is drawn anew for every trial and independently for every user. `sandbox.program`
judges each trial against the incumbent as it does in a session. Printed are the false keeps (kept as better, after
the first trial) beside the bound that the keep rule promises, and how much the best of the K flatters itself. Where
sizes differ, simpler configurations are kept within noise, too; the mark that a better one must pass stays.

The bound. Each keep raises the incumbent's measured mean by keep_z standard errors of a paired difference, sqrt(2)
standard errors s of one mean, at least; the incumbent can rise from the first measurement to the largest of K, which is
sqrt(2 ln K) s above it at most in expectation. So E[false keeps] <= sqrt(2 ln K) / (sqrt(2) keep_z), which is
sqrt(ln K) / keep_z.

    python benchmarks/simulate_gate.py [--configurations 500] [--sessions 200] [--keep-z 1.0]
"""

import argparse
import json
import math
from dataclasses import dataclass

import numpy as np

from virtualmle.sandbox.program import TrialSize, judge
from virtualmle.sandbox.statistics import Comparison, z_score

USERS = 500


@dataclass(frozen=True)
class Outcome:
    """What one session of equal configurations came to."""

    false_keeps: int  # as better than what was reached
    simpler_keeps: int  # within noise, with fewer parameters
    inflation: float  # of the best one, in standard errors of one mean
    drift: float  # of the last incumbent below the best one, in the same unit


def simulate(rng: np.random.Generator, configurations: int, keep_z: float, *, sizes: bool = False) -> Outcome:
    """One session; `sizes` gives the configurations different numbers of parameters, so that the simpler may win."""
    luck = rng.standard_normal((configurations, USERS))  # what is the same for all trials cancels in the pairing
    parameters = rng.permutation(configurations) + 1 if sizes else np.ones(configurations, dtype=int)
    means = luck.mean(axis=1) * math.sqrt(USERS)
    incumbent, now, best, better, simpler = None, 0, 0, 0, 0
    for number in range(configurations):
        candidate = TrialSize(f"t{number:03}", int(parameters[number]))
        comparison = compared(luck[now], luck[number]) if incumbent else None
        best_trial = (f"t{best:03}", compared(luck[best], luck[number])) if best != now else None
        judgement = judge(candidate, incumbent, comparison, keep_z, best_trial=best_trial)
        if judgement.verdict == "keep":
            by_size = "simpler" in judgement.reason
            better, simpler = better + (not by_size and number > 0), simpler + by_size
            incumbent, now = candidate, number
            best = number if means[number] >= means[best] else best
    return Outcome(better, simpler, float(means.max()), float(means.max() - means[now]))


def compared(base: np.ndarray, candidate: np.ndarray) -> Comparison:
    """The paired comparison of `sandbox.statistics.compare`, on values that are given instead of ranks."""
    difference = candidate - base
    delta, se = float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(difference.size))
    return Comparison(delta, se, z_score(delta, se), difference.size)


def promised(configurations: int, keep_z: float) -> float:
    """The largest expected number of false keeps."""
    return math.sqrt(math.log(configurations)) / keep_z


def main() -> None:
    """Simulate, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configurations", type=int, default=500)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--keep-z", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    record: dict[str, float] = {**vars(asked), "promised": promised(asked.configurations, asked.keep_z)}
    for name, sizes in (("equal sizes", False), ("different sizes", True)):
        rng = np.random.default_rng(asked.seed)
        runs = [simulate(rng, asked.configurations, asked.keep_z, sizes=sizes) for _ in range(asked.sessions)]
        keeps = np.array([run.false_keeps for run in runs])
        error = keeps.std(ddof=1) / math.sqrt(len(runs))
        print(f"{name}: {keeps.mean():.2f} ± {error:.2f} false keeps of {asked.configurations} (most: {keeps.max()})")
        print(f"  and {np.mean([run.simpler_keeps for run in runs]):.2f} of simpler ones, within noise")
        print(f"  best one flatters itself by {np.mean([run.inflation for run in runs]):.2f} standard errors")
        print(f"  last incumbent lies {np.mean([run.drift for run in runs]):.2f} standard errors below it")
        record[f"false_keeps, {name}"] = float(keeps.mean())
    print(f"promised at most: {record['promised']:.2f}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
