"""Whether the joint estimate of effects is right, simulated with the code that estimates real sessions.

A simulated session has 14 trials. Each changes two to nine knobs at once over the best trial so far, as a language
model does; about a quarter change scoring knobs only and re-score the checkpoint of their base. The true NDCG@10 is
additive over knobs. A trial's NDCG@10 is measured on 4,905 users whose ranks are drawn around the truth: about one in
ten has the item among the first ten, and the ranks of two trials are correlated by user, as on Office. A training adds
an error of its own, which trials that share the checkpoint share.

The script prints, for truths of several kinds: the share of effects inside their 50 %, 90 % and 95 % intervals, the
rank correlation between estimated and true effects, the share of sessions in which an interaction is named, and, for
sessions with a planted interaction, how often it is the one that is named.

    python benchmarks/simulate_effects.py --sessions 400
"""

import json
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from record import environment, parser_of

from virtualmle.memory.records import TrialOutcome, TrialRecord
from virtualmle.models.config import TrialConfig, check_combination, make_config, train_hash
from virtualmle.sandbox.joint import model_of
from virtualmle.sandbox.observations import COVARIANCES, user_covariances
from virtualmle.sandbox.statistics import compare, standard_error
from virtualmle.sandbox.surrogate import Surrogate, engine_knobs, position
from virtualmle.training.metrics import metrics_from_ranks

Floats = npt.NDArray[np.float64]
Ranks = npt.NDArray[np.int32]

USERS = 4905
NDCG = 0.05  # of the first trial
RANK_COUNTS = (84, 38, 37, 21, 35, 31, 20, 20, 20, 23)  # ranks 1 to 10 of a SASRec on Office
HIT_SHARES = np.cumsum(RANK_COUNTS) / sum(RANK_COUNTS)
MEAN_GAIN = float(np.dot(RANK_COUNTS, 1 / np.log2(np.arange(2, 12))) / sum(RANK_COUNTS))
USER_CORRELATION = 0.9  # of the latent ranks of two trainings; their NDCG@10 per user then correlates by .7
CHECKPOINT_CORRELATION = 0.8  # of what is left, between two scorings of one checkpoint
LEVELS = {0.5: 0.674, 0.9: 1.645, 0.95: 1.96}  # level -> half width of the interval in standard errors
VALUES: dict[str, list[Any]] = {
    "lr": [1e-4, 1e-3, 3e-3], "schedule": ["cosine", "linear"], "batch_size": [128, 512], "beta2": [0.98],
    "dropout": [0.1, 0.3, 0.5], "embedding_dropout": [0.2, 0.4], "token_dropout": [0.2], "hidden_dim": [64, 256],
    "num_blocks": [2, 3], "ffn_multiplier": [2, 4], "loss": ["full_softmax", "bce"], "temperature": [0.07, 0.3],
    "window_stride": [10], "time_bias": [True], "norm": ["rms"], "transition_weight": [1.0, 4.0, 8.0],
    "cooccurrence_weight": [2.0, 4.0], "popularity_weight": [0.5, 2.0],
}  # fmt: skip
"""The values that simulated trials try, besides the default; none of them disables another."""
SCORING = ("transition_weight", "cooccurrence_weight", "popularity_weight")
DEFAULT = make_config("sasrec")
KNOBS = {knob.name: knob for knob in engine_knobs("sasrec")}


@dataclass(frozen=True)
class Setting:
    """A kind of session. Effects and errors are relative to the first trial's NDCG@10.

    effect        standard deviation of the effect of a step over a quarter of a knob's range, or to another choice
    sparsity      share of the knobs that have no effect
    training      standard deviation of the error of a training
    interaction   effect of the two planted knobs together, beyond the sum of both; 0 for an additive truth
    """

    name: str
    trials: int = 14
    fewest: int = 2
    most: int = 9
    effect: float = 0.05
    sparsity: float = 0.0
    training: float = 0.02
    interaction: float = 0.0
    knobs: tuple[str, ...] = tuple(VALUES)


@dataclass
class World:
    """The truth of one simulated session, and its trials so far."""

    setting: Setting
    rng: np.random.Generator
    effects: dict[str, dict[Any, float]]  # knob -> value -> effect over the default
    planted: tuple[str, str]
    users: Floats = field(default_factory=lambda: np.zeros(0))
    trials: list[TrialRecord] = field(default_factory=list)
    ranks: dict[str, Ranks] = field(default_factory=dict)
    checkpoints: dict[str, tuple[Floats, float]] = field(default_factory=dict)  # train hash -> users' part, error

    def truth(self, config: TrialConfig) -> float:
        """The true effect of a configuration over the default."""
        found = sum(of.get(getattr(config, knob), 0.0) for knob, of in self.effects.items())
        together = all(getattr(config, knob) != getattr(DEFAULT, knob) for knob in self.planted)
        return found + (self.setting.interaction if together else 0.0)

    def run(self, base: TrialRecord | None, changes: Mapping[str, Any]) -> TrialRecord:
        """Measure one trial and append it, recorded as the server records trials."""
        config = (base.configuration if base else DEFAULT).model_copy(update=dict(changes))
        check_combination(config)
        handle = f"t{len(self.trials) + 1:03}"
        ranks = self._measured(config)
        against = compare(self.ranks[base.handle], ranks) if base else None
        outcome = TrialOutcome(
            status="finished", verdict="keep", metrics=metrics_from_ranks(ranks), ndcg_se=standard_error(ranks),
            base_delta=against.delta if against else None, base_delta_se=against.se if against else None,
            details={COVARIANCES: user_covariances(handle, ranks, self.ranks)},
        )  # fmt: skip
        trial = TrialRecord(
            session="s", handle=handle, number=len(self.trials) + 1, base=base.handle if base else "default",
            changes=dict(changes), config=config.model_dump(), config_hash="", train_hash=train_hash(config),
            status="finished", outcome=outcome,
        )  # fmt: skip
        self.trials.append(trial)
        self.ranks[handle] = ranks
        return trial

    def _measured(self, config: TrialConfig) -> Ranks:
        """Ranks whose expected NDCG@10 is the truth plus the error of the training; 11 for all ranks beyond ten."""
        key = train_hash(config)
        if key not in self.checkpoints:
            own, error = self.rng.standard_normal(USERS), self.setting.training * self.rng.standard_normal()
            self.checkpoints[key] = own, float(error)
        own, error = self.checkpoints[key]
        rest = np.sqrt(CHECKPOINT_CORRELATION) * own
        rest += np.sqrt(1 - CHECKPOINT_CORRELATION) * self.rng.standard_normal(USERS)
        latent = np.sqrt(USER_CORRELATION) * self.users + np.sqrt(1 - USER_CORRELATION) * rest
        hits = NDCG * max(1 + self.truth(config) + error, 0.05) / MEAN_GAIN
        thresholds = [statistics.NormalDist().inv_cdf(hits * share) for share in HIT_SHARES]
        return np.searchsorted(thresholds, latent).astype(np.int32) + 1


def a_world(rng: np.random.Generator, setting: Setting) -> World:
    """Draw the truth: along the values of a number, independent steps from the default; independent choices."""
    effects = {}
    for knob in setting.knobs:
        scale = 0.0 if rng.random() < setting.sparsity else setting.effect
        effects[knob] = _walk(rng, knob, scale)
    planted = tuple(rng.choice(np.array(setting.knobs), 2, replace=False).tolist())
    return World(setting, rng, effects, planted, users=rng.standard_normal(USERS))


def _walk(rng: np.random.Generator, name: str, scale: float) -> dict[Any, float]:
    knob, default = KNOBS[name], getattr(DEFAULT, name)
    if knob.low is None:
        return {value: scale * float(rng.standard_normal()) for value in VALUES[name]}
    found = {}
    for side in (1, -1):
        at, effect = position(knob, default), 0.0
        beyond = [value for value in VALUES[name] if (value > default) == (side > 0)]
        for value in sorted(beyond, reverse=side < 0):
            gap = abs(position(knob, value) - at)
            effect += scale * np.sqrt(gap / 0.25) * float(rng.standard_normal())
            at, found[value] = position(knob, value), effect
    return found


def a_session(rng: np.random.Generator, setting: Setting) -> World:
    """One session: the default, then bundles over the best trial so far."""
    world = a_world(rng, setting)
    best = world.run(None, {})
    for _ in range(setting.trials - 1):
        trial = world.run(best, _bundle(world, best))
        best = max(best, trial, key=lambda t: t.outcome.metrics["ndcg@10"] if t.outcome else 0.0)
    return world


def _bundle(world: World, base: TrialRecord) -> dict[str, Any]:
    rng, setting = world.rng, world.setting
    offered = SCORING if set(SCORING) <= set(setting.knobs) and rng.random() < 0.25 else setting.knobs
    size = min(int(rng.integers(setting.fewest, setting.most + 1)), len(offered))
    changes = {}
    for knob in rng.choice(np.array(offered), size, replace=False).tolist():
        values = [v for v in [*VALUES[knob], getattr(DEFAULT, knob)] if v != base.config[knob]]
        changes[knob] = values[int(rng.integers(len(values)))]
    return changes


@dataclass(frozen=True)
class Score:
    """How one session was estimated: standardised errors of all effects and shares, rank correlation, interactions."""

    errors: list[float]  # (estimate - truth) / standard error, of every tried value over the default
    share_errors: list[float]  # the same, of the shares of all bundled trials
    correlation: float
    strongest: bool  # whether the change with the largest estimated gain is truly among the best three
    named: tuple[str, str] | None


def score(world: World, model: Surrogate | None = None) -> Score:
    """Compare the estimate with the truth."""
    model = model or model_of(world.trials, DEFAULT)
    assert model is not None
    tried = {(k, t.config[k]) for t in world.trials for k in world.setting.knobs}
    steps = sorted((s for s in tried if s[1] != getattr(DEFAULT, s[0])), key=repr)
    found = model.posterior([{k: (getattr(DEFAULT, k), v)} for k, v in steps])
    unit = model.reference_ndcg / NDCG  # estimates are relative to the measured first trial
    truth = np.array([world.effects[k].get(v, 0.0) for k, v in steps])
    estimate, sd = found.mean * unit, found.sd * unit
    ranked = np.argsort(-truth)[:3]
    return Score(
        errors=((estimate - truth) / sd).tolist(),
        share_errors=_share_errors(world, model, unit),
        correlation=rank_correlation(estimate, truth),
        strongest=bool(np.argmax(estimate) in ranked),
        named=model.interaction.knobs if model.interaction else None,
    )


def _share_errors(world: World, model: Surrogate, unit: float) -> list[float]:
    configs = {trial.handle: trial.configuration for trial in world.trials}
    steps = [
        {knob: (getattr(configs[trial.base], knob), value)}
        for trial in world.trials[1:]
        for knob, value in trial.changes.items()
    ]
    found = model.posterior(steps)
    of = world.effects
    truth = [of[k].get(after, 0.0) - of[k].get(before, 0.0) for s in steps for k, (before, after) in s.items()]
    return ((found.mean * unit - truth) / (found.sd * unit)).tolist()


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation; there are no ties."""
    ranks_a, ranks_b = (np.argsort(np.argsort(values)) for values in (a, b))
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def coverage(errors: list[float], level: float) -> float:
    """The share of standardised errors inside the interval of this level."""
    return float(np.mean(np.abs(errors) <= LEVELS[level]))


def summary(setting: Setting, sessions: int, seed: int = 0) -> dict[str, Any]:
    """Simulate sessions of one kind and summarise their scores."""
    scored = []
    for number in range(sessions):
        world = a_session(np.random.default_rng([seed, number]), setting)
        scored.append((score(world), set(world.planted)))
    errors = [error for found, _ in scored for error in found.errors]
    shares = [error for found, _ in scored for error in found.share_errors]
    return {
        "setting": setting.name,
        "effects": len(errors),
        **{f"coverage_{level:g}": round(coverage(errors, level), 3) for level in LEVELS},
        "shares_0.9": round(coverage(shares, 0.9), 3),
        "rank_correlation": round(float(np.mean([found.correlation for found, _ in scored])), 3),
        "best_in_top_3": round(float(np.mean([found.strongest for found, _ in scored])), 3),
        "interaction_named": round(float(np.mean([bool(found.named) for found, _ in scored])), 3),
        "planted_named": round(float(np.mean([set(found.named or ()) == planted for found, planted in scored])), 3),
    }


FEW_KNOBS = ("lr", "dropout", "loss", "transition_weight", "cooccurrence_weight", "hidden_dim")
SETTINGS = (
    Setting("dense effects"),
    Setting("small effects", effect=0.02),
    Setting("large effects", effect=0.12),
    Setting("sparse effects", effect=0.08, sparsity=0.6),
    Setting("no training error", training=0.0),
    Setting("training error 4 %", training=0.04),
    Setting("30 trials", trials=30),
    Setting("few knobs, 24 trials", trials=24, most=4, knobs=FEW_KNOBS),
    Setting("few knobs, an interaction of -20 %", trials=24, most=4, knobs=FEW_KNOBS, interaction=-0.2),
)


def main(run: Callable[[Setting, int], dict[str, Any]] = summary) -> None:
    """Print the table, then one JSON line."""
    parser = parser_of(str(__doc__))
    parser.add_argument("--sessions", type=int, default=400)
    sessions = parser.parse_args().sessions
    rows = []
    for setting in SETTINGS:
        rows.append(run(replace(setting), sessions))
        if len(rows) == 1:
            print(" | ".join(rows[0]))
        print(" | ".join(map(str, rows[-1].values())), flush=True)
    print(json.dumps({"benchmark": "simulate_effects", "sessions": sessions, "rows": rows, **environment()}))


if __name__ == "__main__":
    main()
