"""How often the keep rule keeps a configuration that is no better, simulated with the code that judges real trials.

A simulated session has K configurations of equal quality. A trial measures, for each user, the user's true NDCG@10 plus
noise, which is drawn independently for every trial and user. `sandbox.program` judges each trial against the incumbent
as in a real session. The script prints the number of false keeps (trials after the first that are kept as better) with
the bound that the keep rule guarantees, and the selection inflation of the best trial. If the configurations differ in
size, simpler ones are kept within noise as well, without lowering the threshold for better ones.

The bound: each keep raises the incumbent's measured mean by at least keep_z standard errors of a paired difference,
each of which is sqrt(2) times the standard error s of one mean. From the first measurement to the largest of K, the
mean can rise by at most sqrt(2 ln K) s in expectation. Hence E[false keeps] <= sqrt(2 ln K) / (sqrt(2) keep_z)
= sqrt(ln K) / keep_z.

    python benchmarks/simulate_gate.py --configurations 500 --sessions 200 --keep-z 1.0
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from record import environment, parser_of

from virtualmle.sandbox.program import TrialSize, judge
from virtualmle.sandbox.statistics import Comparison, z_score

USERS = 500


@dataclass(frozen=True)
class Outcome:
    """The outcome of one session of equal configurations."""

    false_keeps: int  # trials kept as better
    simpler_keeps: int  # trials kept within noise, with fewer parameters
    inflation: float  # best measured mean minus the true mean, in standard errors of one mean
    drift: float  # best measured mean minus that of the last incumbent, in the same unit


def simulate(rng: np.random.Generator, configurations: int, keep_z: float, *, sizes: bool = False) -> Outcome:
    """Simulate one session; with `sizes` the configurations have different numbers of parameters."""
    noise = rng.standard_normal((configurations, USERS))  # a user's true NDCG@10 cancels in the paired differences
    parameters = rng.permutation(configurations) + 1 if sizes else np.ones(configurations, dtype=int)
    means = noise.mean(axis=1) * math.sqrt(USERS)
    incumbent, current, best, better, simpler = None, 0, 0, 0, 0
    for number in range(configurations):
        candidate = TrialSize(f"t{number:03}", int(parameters[number]))
        comparison = compared(noise[current], noise[number]) if incumbent else None
        best_kept = (f"t{best:03}", compared(noise[best], noise[number])) if best != current else None
        judgement = judge(candidate, incumbent, comparison, keep_z, best_kept=best_kept)
        if judgement.verdict == "keep":
            by_size = "simpler" in judgement.reason
            better, simpler = better + (not by_size and number > 0), simpler + by_size
            incumbent, current = candidate, number
            best = number if means[number] >= means[best] else best
    return Outcome(better, simpler, float(means.max()), float(means.max() - means[current]))


def compared(base: np.ndarray, candidate: np.ndarray) -> Comparison:
    """The paired comparison of `sandbox.statistics.compare`, but of NDCG@10 values instead of ranks."""
    difference = candidate - base
    delta, se = float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(difference.size))
    return Comparison(delta, se, z_score(delta, se), difference.size)


def false_keeps_bound(configurations: int, keep_z: float) -> float:
    """The bound on the expected number of false keeps."""
    return math.sqrt(math.log(configurations)) / keep_z


def main() -> None:
    """Simulate sessions with equal and with different sizes; print a table and one JSON line."""
    parser = parser_of(__doc__)
    parser.add_argument("--configurations", type=int, default=500)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--keep-z", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    num, keep_z = arguments.configurations, arguments.keep_z
    bound = false_keeps_bound(num, keep_z)
    record: dict[str, object] = {"bench": "gate", **environment(), **vars(arguments), "promised": bound}
    for name, sizes in (("equal sizes", False), ("different sizes", True)):
        rng = np.random.default_rng(arguments.seed)
        runs = [simulate(rng, num, keep_z, sizes=sizes) for _ in range(arguments.sessions)]
        keeps = np.array([run.false_keeps for run in runs])
        error = keeps.std(ddof=1) / math.sqrt(len(runs))
        print(f"{name}: {keeps.mean():.2f} ± {error:.2f} false keeps of {num} (maximum: {keeps.max()})")
        print(f"  simpler configurations kept within noise: {np.mean([run.simpler_keeps for run in runs]):.2f}")
        print(f"  selection inflation of the best: {np.mean([run.inflation for run in runs]):.2f} standard errors")
        print(f"  last incumbent below the best: {np.mean([run.drift for run in runs]):.2f} standard errors")
        record[f"false_keeps, {name}"] = float(keeps.mean())
    print(f"bound on the expected false keeps: {bound:.2f}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
