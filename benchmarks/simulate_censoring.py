"""Whether stopped trials bias the joint estimate of effects, simulated with the code that estimates real sessions.

The sessions are those of simulate_effects.py, with one to three changes per trial. A trial is stopped when it has
reached a part of its NDCG@10 and a growth of two standard deviations above the mean leaves it below the best trial so
far; such a bound is wrong in 2 % of all trials. What is known of it afterwards is that its NDCG@10 would have been
between what it has reached and that bound. The effects of the values that stopped trials tried are estimated four
times: from all trials run to their ends, from the bounds as such, without the stopped trials, and with the upper bounds
taken as measured values. The script prints the mean error (bias), the root mean squared error and the share of effects
inside their 90 % intervals.

    python benchmarks/simulate_censoring.py --sessions 200
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from record import environment, parser_of
from simulate_effects import DEFAULT, LEVELS, NDCG, SCORING, Setting, World, a_session

from virtualmle.memory.records import TrialRecord
from virtualmle.sandbox.joint import model_of

LOG_GROWTH, GROWTH_SPREAD = 0.5, 0.1  # from the stop to the end NDCG@10 grows by about 65 %
BOUND_Z = 2.0
Treatment = Callable[[Sequence[TrialRecord], Sequence[TrialRecord]], list[TrialRecord]]


def race(world: World, rng: np.random.Generator) -> list[TrialRecord]:
    """The trials of a session with those stopped whose bound is below the best trial that ran to its end before."""
    best, raced = 0.0, []
    for trial in world.trials:
        assert trial.outcome is not None
        ndcg = trial.outcome.metrics["ndcg@10"]
        reached = ndcg / np.exp(rng.normal(LOG_GROWTH, GROWTH_SPREAD))
        bound = reached * np.exp(LOG_GROWTH + BOUND_Z * GROWTH_SPREAD)
        if bound < best and not set(trial.changes) <= set(SCORING):
            raced.append(stopped(trial, float(reached), float(bound)))
        else:
            best = max(best, ndcg)
            raced.append(trial)
    return raced


def stopped(trial: TrialRecord, floor: float, bound: float) -> TrialRecord:
    """The trial as it would be recorded if racing had stopped it."""
    assert trial.outcome is not None
    unknown = {"metrics": {}, "ndcg_se": None, "base_delta": None, "base_delta_se": None}
    outcome = trial.outcome.model_copy(
        update={**unknown, "status": "stopped", "verdict": "discard", "details": {"floor": floor, "bound": bound}}
    )
    return trial.model_copy(update={"status": "stopped", "outcome": outcome})


def _as_value(trial: TrialRecord) -> TrialRecord:
    """A stopped trial as if its upper bound had been measured."""
    if trial.outcome is None or trial.bound is None:
        return trial
    outcome = trial.outcome.model_copy(update={"status": "finished", "metrics": {"ndcg@10": trial.bound}})
    return trial.model_copy(update={"status": "finished", "outcome": outcome})


TREATMENTS: dict[str, Treatment] = {
    "run to the end": lambda full, _: list(full),
    "as bounds": lambda _, raced: list(raced),
    "left out": lambda _, raced: [trial for trial in raced if trial.status == "finished"],
    "as values": lambda _, raced: [_as_value(trial) for trial in raced],
}


def errors(
    setting: Setting, sessions: int, seed: int = 0
) -> tuple[float, dict[str, npt.NDArray[np.float64]]]:
    """Stopped trials per session, and by treatment the errors of effects with their standard deviations, (effects, 2).
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TREATMENTS}
    num_stopped = 0
    for number in range(sessions):
        rng = np.random.default_rng([seed, number])
        world = a_session(rng, setting)
        raced = race(world, rng)
        ended = [trial for trial in raced if trial.status == "stopped"]
        num_stopped += len(ended)
        tried = sorted({(knob, trial.config[knob]) for trial in ended for knob in trial.changes}, key=repr)
        steps = [{knob: (getattr(DEFAULT, knob), value)} for knob, value in tried if value != getattr(DEFAULT, knob)]
        truth = [world.effects[knob][after] for step in steps for knob, (_, after) in step.items()]
        for name, treat in TREATMENTS.items() if steps else ():
            model = model_of(treat(world.trials, raced), DEFAULT)
            assert model is not None
            effects, unit = model.posterior(steps), model.reference_ndcg / NDCG
            found[name] += zip((effects.mean * unit - truth).tolist(), (effects.sd * unit).tolist(), strict=True)
    return num_stopped / sessions, {name: np.array(rows) for name, rows in found.items()}


def summary(setting: Setting, sessions: int) -> dict[str, Any]:
    """The table of one kind of session."""
    per_session, found = errors(setting, sessions)
    rows = {
        name: {
            "bias": round(float(table[:, 0].mean()), 4),
            "rmse": round(float(np.sqrt((table[:, 0] ** 2).mean())), 4),
            "coverage_0.9": round(float((np.abs(table[:, 0]) <= LEVELS[0.9] * table[:, 1]).mean()), 3),
        }
        for name, table in found.items()
    }
    return {"setting": setting.name, "stopped_per_session": round(per_session, 2), "effects": rows}


SETTINGS = (
    Setting("effects of 8 %", trials=16, fewest=1, most=3, effect=0.08),
    Setting("effects of 15 %", trials=16, fewest=1, most=3, effect=0.15),
    Setting("larger bundles", trials=16, fewest=2, most=6, effect=0.08),
)


def main() -> None:
    """Print the table, then one JSON line."""
    parser = parser_of(str(__doc__))
    parser.add_argument("--sessions", type=int, default=200)
    sessions = parser.parse_args().sessions
    rows = []
    for setting in SETTINGS:
        rows.append(summary(setting, sessions))
        print(f"{setting.name}: {rows[-1]['stopped_per_session']} stopped trials per session")
        for name, figures in rows[-1]["effects"].items():
            print(f"  {name:16} " + "  ".join(f"{key} {value:+.4f}" for key, value in figures.items()), flush=True)
    print(json.dumps({"benchmark": "simulate_censoring", "sessions": sessions, "rows": rows, **environment()}))


if __name__ == "__main__":
    main()
