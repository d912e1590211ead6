"""What a session whose protocol offered few knobs may tell a later one: it adds to the opening, and refuses little."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.agents_world import SPACE, World
from virtualmle.agents.engineer import Engineer
from virtualmle.agents.opening import bundled, completed
from virtualmle.agents.space import Space
from virtualmle.memory.records import ConfigurationRecord, EffectRecord, RuleRecord
from virtualmle.sandbox.conditions import parse_condition
from virtualmle.tools.covering import Evidence, covers, may_refuse
from virtualmle.tools.open_session import open_session
from virtualmle.tools.transfer import heuristics_of
from virtualmle.tools.views import PooledEffect
from virtualmle.tools.workspace import Settings, Workspace

GRID = ("lr", "dropout", "hidden_dim", "loss", "transition_weight", "transition_recent")
FROM_GRID = {"lr": 3e-3, "dropout": 0.5, "hidden_dim": 128, "loss": "full_softmax", "transition_weight": 2.0,
             "transition_recent": 3}  # fmt: skip
BEST = {name: FROM_GRID[name] for name in ("lr", "dropout", "loss", "transition_weight", "transition_recent")}
"""What the prior says of it: the values that differ from the defaults."""
DEFAULT = SPACE.default("sasrec").model_dump()
BUNDLE = {"lr": 1e-3, "loss": "full_softmax", "scores": "cosine", "temperature": 0.07, "dropout": 0.5,
          "embedding_dropout": 0.5, "attention_dropout": 0.5, "tie_embeddings": True, "epochs": 80, "patience": 8,
          "batch_size": 64, "num_blocks": 2, "frequency_rescaling": 0.7,
          "norm_placement": "post"}  # fmt: skip


def recommendation(**fields: Any) -> dict[str, Any]:
    return {"type": "configuration", "session": "grid-sasrec-1", "trial": "t009", "dataset": "grid", "config": BEST,
            "gain": 1.2, "ndcg@10": 0.05, "similarity": 0.9, **fields}  # fmt: skip


def second_trial(prior: list[dict[str, Any]], effects: dict[str, Any] | None = None) -> dict[str, Any]:
    known = {"history_effects": effects or {}}
    changes: dict[str, Any] = World(prior=prior, known=known, trials_max=2).play(Engineer(0)).trials[1]["changes"]
    return changes


def effect(means: dict[float, float]) -> dict[str, Any]:
    """The pooled effect of a knob, with a standard error of .01 for each value."""
    rows = [{"value": value, "n": 2, "mean_relative": mean, "se": 0.01} for value, mean in means.items()]
    return {"n": 4, "datasets": 1, "mean_relative": 0.1, "se": 0.1, "interval": [-1.0, 1.0], "values": rows}


def test_a_configuration_of_a_grid_adds_its_score_priors_to_the_opening_bundle() -> None:
    assert second_trial([]) == BUNDLE
    found = second_trial([recommendation(offered=sorted(GRID))])
    assert found == {**BUNDLE, "transition_weight": 2.0, "transition_recent": 3}


def test_a_configuration_of_a_session_that_offered_as_much_is_run_as_it_is() -> None:
    assert second_trial([recommendation()]) == BEST
    assert second_trial([recommendation(offered=sorted({*GRID, *BUNDLE}))]) == BEST


def test_a_training_setting_of_a_grid_counts_only_if_it_was_clearly_better_than_that_of_the_bundle() -> None:
    prior = [recommendation(offered=sorted(GRID))]
    assert second_trial(prior, {"lr": effect({1e-3: 0.70, 3e-3: 0.72})})["lr"] == 1e-3
    assert second_trial(prior, {"lr": effect({1e-3: 0.70, 3e-3: 0.90})})["lr"] == 3e-3


def test_a_bundle_value_that_a_grid_found_clearly_worse_than_the_default_is_left_out() -> None:
    space = Space("sasrec", World().space.knobs("sasrec"))
    worse = {"dropout": PooledEffect.model_validate(effect({0.5: -0.3}))}
    found = completed({"lr": 3e-3}, ["lr", "dropout"], BUNDLE, worse, space)
    assert found == {**BUNDLE, "dropout": DEFAULT["dropout"]}


def test_the_opening_bundle_of_the_tests_is_that_of_the_engineer() -> None:
    space = Space("sasrec", World().space.knobs("sasrec"))
    assert bundled(space, lambda move: move.gain)[0].changes == BUNDLE


def test_once_the_bundle_stands_other_configurations_of_a_grid_are_left_to_the_sweep() -> None:
    other = recommendation(trial="t010", config={**BEST, "transition_weight": 8.0}, offered=sorted(GRID))
    world = World(prior=[recommendation(offered=sorted(GRID)), other], trials_max=4).play(Engineer(0))
    assert sum("temperature" in trial["changes"] for trial in world.trials) == 1


def heuristic(**fields: Any) -> dict[str, Any]:
    return {"type": "heuristic", "kind": "avoid", "condition": "num_blocks >= 2", "backbone": "sasrec",
            "dataset": "grid", "session": "grid-sasrec-1", "check": "supported", "id": 1, "statement": "quoted",
            "support": 3, "contradiction": 0, "confidence": 0.8, "similarity": 0.9, **fields}  # fmt: skip


@pytest.mark.parametrize(
    ("offered", "tried"),
    [(None, False), (["num_blocks"], True), (["num_blocks", "lr"], False)],
    ids=["of a like protocol", "of a narrower one", "of one that could vary what the base sets"],
)
def test_the_engineer_heeds_a_heuristic_only_over_bases_that_its_session_could_have_had(
    offered: list[str] | None, tried: bool
) -> None:
    known = {} if offered is None else {"offered": offered}
    world = World(knobs={"lr", "num_blocks"}, prior=[heuristic(**known)], trials_max=12).play(Engineer(0))
    over_lr = [config for config in world.configs.values() if config.num_blocks >= 2 and config.lr != DEFAULT["lr"]]
    assert bool(over_lr) == tried


SMALL = parse_condition("hidden_dim <= 64")
TRIED = {128: (0.0, 0.0), 64: (-0.05, 0.01), 32: (-0.06, 0.01)}


def evidence(**fields: Any) -> Evidence:
    known: dict[str, Any] = {"own": False, "datasets": 1, "offered": [frozenset(GRID)], "tried": TRIED, **fields}
    return Evidence(**known)


@pytest.mark.parametrize(
    ("found", "refuses"),
    [
        (evidence(), False),
        (evidence(datasets=2), True),
        (evidence(own=True), True),
        (evidence(tried={128: (0.0, 0.0), 64: (-0.16, 0.06)}), True),
        (evidence(tried={128: (0.0, 0.0), 64: (-0.16, 0.09)}), False),
        (evidence(tried={128: (0.0, 0.0), 64: (-0.16, 0.06), 32: (-0.01, 0.01)}), False),
        (evidence(tried={64: (-0.5, 0.01)}), False),
    ],
    ids=["small", "two datasets", "own data", "large", "large but unclear", "not every value", "nothing to compare"],
)
def test_a_heuristic_refuses_with_two_datasets_or_a_large_loss(found: Evidence, refuses: bool) -> None:
    assert may_refuse(SMALL, found) == refuses


@pytest.mark.parametrize(
    ("value", "base", "found", "covered"),
    [
        (64, {}, evidence(), True),
        (48, {}, evidence(), True),
        (16, {}, evidence(), False),
        (64, {"lr": 1e-3}, evidence(), True),
        (64, {"temperature": 0.07}, evidence(), False),
        (64, {"temperature": 0.07}, evidence(offered=[frozenset(GRID), None]), True),
        (64, {"popularity_weight": 0.5}, evidence(), True),
        (16, {"temperature": 0.07}, evidence(own=True), True),
    ],
    ids=["tried", "between", "beyond", "known company", "other company", "known elsewhere", "priors", "own data"],
)
def test_a_heuristic_covers_values_that_were_tried_in_like_company(
    value: int, base: Mapping[str, Any], found: Evidence, covered: bool
) -> None:
    assert covers(SMALL, found, {**DEFAULT, **base}, DEFAULT, value) == covered


@pytest.fixture
def ws(tmp_path: Path) -> Iterator[Workspace]:
    """A home that knows two sessions of a grid, on one dataset: nothing is trained."""
    workspace = Workspace.open(tmp_path, settings=Settings(threads=1))
    source = {"dataset": "grid", "dataset_id": "d1", "backbone": "sasrec"}
    for condition in ("hidden_dim <= 64", "transition_recent <= 1", "dropout <= 0.1"):
        rule = RuleRecord(
            kind="avoid", statement="it lost", condition=condition, session="", check="supported", support=0,
            profile={"users": 1000}, **source,
        )  # fmt: skip
        rule_id, _ = workspace.memory.rules.find_or_store(rule)
        with workspace.memory.database.writing() as db:
            db.execute("UPDATE rules SET session = 'far:grid-sasrec-1' WHERE id = ?", [rule_id])
            db.execute(
                "INSERT INTO rule_counts (rule, session, support, contradiction, evidence, dataset, dataset_id) "
                "VALUES (?, 'far:grid-sasrec-1', 2, 0, '[]', 'grid', 'd1')", [rule_id],
            )  # fmt: skip
        workspace.memory.rules.update_totals(rule_id)
    known: dict[str, Any] = {**source, "session": "far:grid-sasrec-1"}
    workspace.memory.measurements.add(
        [ConfigurationRecord(trial="t009", config=FROM_GRID, config_hash="h", ndcg=0.05, gain=1.2, **known)],
        [
            EffectRecord(knob="hidden_dim", value=64, n=2, weight=400.0, weighted=-0.2 * 400, **known),
            EffectRecord(knob="transition_recent", value=3, n=2, weight=1e4, weighted=0.3 * 1e4, **known),
            EffectRecord(knob="dropout", value=0.1, n=2, weight=1e4, weighted=-0.03 * 1e4, **known),
        ],
    )
    yield workspace
    workspace.close()


def test_the_prior_says_what_a_narrow_session_offered_and_which_rules_refuse(ws: Workspace) -> None:
    prior = {str(entry.get("condition")): entry for entry in open_session(ws, "demo", "sasrec").prior}
    kinds = {condition: entry["type"] for condition, entry in prior.items()}
    assert kinds == {"hidden_dim <= 64": "heuristic", "transition_recent <= 1": "heuristic", "dropout <= 0.1": "rule",
                     "None": "configuration"}  # fmt: skip
    assert prior["None"]["offered"] == prior["hidden_dim <= 64"]["offered"] == sorted(GRID)
    assert "offered" not in prior["dropout <= 0.1"]


def test_a_trial_over_the_bundle_and_a_re_scored_one_are_not_refused_by_a_grid(ws: Workspace) -> None:
    session = ws.memory.sessions.get(open_session(ws, "demo", "sasrec").session)
    space = ws.session_protocol(session).space
    default = space.default("sasrec")
    opened = space.resolve(default, BUNDLE)
    small: dict[str, Any] = {"hidden_dim": 64}
    assert [h.condition for h in heuristics_of(ws, session, default, small)] == ["hidden_dim <= 64"]
    assert heuristics_of(ws, session, opened, small) == []
    scored = space.resolve(default, {"transition_recent": 3, "transition_weight": 2.0})
    assert heuristics_of(ws, session, scored, {"transition_recent": 1}) == []
    assert heuristics_of(ws, session, default, {"dropout": 0.1}) == []
