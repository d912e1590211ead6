"""What limits a trial, the remedies for it, what a trial will cost, and how often proposals come true."""

from typing import Any

import pytest

from virtualmle.memory.records import FollowedProposal, TrialOutcome, TrialRecord
from virtualmle.models.config import TrialConfig, train_hash
from virtualmle.sandbox.action_space import ActionSpace
from virtualmle.sandbox.costs import estimate_seconds, relative_cost
from virtualmle.sandbox.diagnosis import Diagnosis, diagnose
from virtualmle.sandbox.proposal_scores import came_true_by_source, followed, proposal_scores
from virtualmle.sandbox.proposals import propose
from virtualmle.sandbox.protocol import load_protocol, parse_protocol
from virtualmle.sandbox.remedies import REMEDIES, changes_of, remedies_for

SPACE = load_protocol().space
DEFAULT = SPACE.default("sasrec")
FLAT = [0.02, 0.04, 0.05, 0.055, 0.056, 0.0561, 0.056, 0.0558]
MEMORISED: dict[str, Any] = {"train": 0.39, "model": 0.056}


def trial(number: int = 1, *, ndcg: float = 0.056, curve: list[float] | None = None, **more: Any) -> TrialRecord:
    """A finished trial over the default; `more`: changes, train, model, popular, seconds (per epoch), rescored, …"""
    changes, seconds = more.pop("changes", {}), more.pop("seconds", 2.0)
    config = SPACE.resolve(DEFAULT, changes)
    epochs = [
        {"epoch": n, "loss": 3.0, "ndcg10": value, "train_seconds": 0.75 * seconds, "evaluate_seconds": 0.25 * seconds}
        for n, value in enumerate(curve or FLAT, 1)
    ]
    measured = {"train": "train_ndcg10", "model": "model_ndcg10", "popular": "popularity_ndcg10"}
    details = {name: more.pop(key) for key, name in measured.items() if key in more}
    details["rescored"] = more.pop("rescored", False)
    proposal = more.pop("proposal", None)
    outcome = TrialOutcome(**{
        "status": "finished", "verdict": "keep" if number == 1 else "discard", "metrics": {"ndcg@10": ndcg},
        "curve": epochs, "details": details, "train_seconds": seconds * len(epochs), **more,
    })  # fmt: skip
    return TrialRecord(
        session="s", handle=f"t{number:03}", number=number, base="default", changes=changes, proposal=proposal,
        config=config.model_dump(), config_hash="", train_hash=train_hash(config), status=outcome.status,
        outcome=outcome,
    )  # fmt: skip


def kinds(record: TrialRecord) -> list[str]:
    return [diagnosis.kind for diagnosis in diagnose(record, SPACE)]


RISING = [0.001 * n for n in range(1, 21)]  # 20 epochs, the limit of the default


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        pytest.param(trial(), [], id="nothing measured"),
        pytest.param(trial(**MEMORISED), ["memorising"], id="seven times on train"),
        pytest.param(trial(train=0.30, model=0.056), [], id="five times on train"),
        pytest.param(trial(train=0.09, model=0.004), [], id="too little learnt to call it memorised"),
        pytest.param(trial(curve=RISING), ["under-trained"], id="the limit ended a rising curve"),
        pytest.param(trial(curve=RISING[:19]), [], id="early stopping ended the curve"),
        pytest.param(trial(curve=[0.05] * 15 + [0.0505] * 5), [], id="one percent in the last quarter"),
        pytest.param(trial(curve=RISING, **MEMORISED), ["under-trained", "memorising"], id="the provisional one first"),
        pytest.param(trial(model=0.06, popular=0.05), ["popularity-bound"], id="little better than popularity"),
        pytest.param(trial(model=0.06, popular=0.03), [], id="twice as good as popularity"),
        pytest.param(trial(model=0.02, changes={"transition_weight": 8.0}), ["prior-bound"], id="most from priors"),
        pytest.param(trial(model=0.05, changes={"transition_weight": 8.0}), [], id="a little from priors"),
        pytest.param(trial(model=0.05, changes={"popularity_weight": 19.0}), ["prior-bound"], id="end of the range"),
        pytest.param(trial(model=0.02), [], id="no prior has a weight"),
    ],
)
def test_a_condition_is_found_in_the_measured_quantities(record: TrialRecord, expected: list[str]) -> None:
    assert kinds(record) == expected


def test_a_diagnosis_names_its_figures_and_its_threshold() -> None:
    (memorising,) = diagnose(trial(**MEMORISED), SPACE)
    assert memorising.short == "NDCG@10 0.390 on train, 0.0560 on validation"
    assert memorising.text == f"{memorising.short}, 7.0 times as much; too far apart from 6 times on"
    (rising,) = diagnose(trial(curve=RISING), SPACE)
    assert rising.short == "validation +33% in the last 5 of 20 epochs" and "from +2% on" in rising.text
    assert rising.rise == pytest.approx(1 / 3)
    (bound,) = diagnose(trial(model=0.05, changes={"popularity_weight": 19.0}), SPACE)
    assert bound.short == "popularity_weight 19 of at most 20"


def test_trials_without_a_result_have_no_diagnosis() -> None:
    crashed = trial(status="crashed", verdict="crash", **MEMORISED)
    running = crashed.model_copy(update={"status": "running", "outcome": None})
    assert diagnose(crashed, SPACE) == diagnose(running, SPACE) == []


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_every_remedy_is_valid_over_the_default_and_says_why(backbone: str) -> None:
    config, knobs = SPACE.default(backbone), {knob.name: knob for knob in SPACE.knobs(backbone)}
    for remedy in REMEDIES:
        assert remedy.mechanism and (remedy.gain is None or (0 < remedy.gain < 0.2 and remedy.source))
        changes = changes_of(remedy, config, knobs)
        if changes:
            assert all(getattr(SPACE.resolve(config, changes), knob) == value for knob, value in changes.items())
    found = {kind: [r for r in REMEDIES if kind in r.kinds and changes_of(r, config, knobs)] for kind in
             ("under-trained", "memorising", "popularity-bound", "prior-bound")}  # fmt: skip
    assert all(len(remedies) >= 2 for remedies in found.values())


def test_a_remedy_steps_up_a_ladder_until_it_ends() -> None:
    knobs = {knob.name: knob for knob in SPACE.knobs("sasrec")}
    (dropout,) = [remedy for remedy in REMEDIES if set(remedy.target) == {"dropout"}]
    steps, config = [], DEFAULT
    while changes := changes_of(dropout, config, knobs):
        steps.append(changes["dropout"])
        config = SPACE.resolve(config, changes)
    assert steps == [0.5, 0.65]
    narrow = knobs["dropout"].model_copy(update={"high": 0.4})
    assert changes_of(dropout, DEFAULT, {**knobs, "dropout": narrow}) is None
    levels = knobs["dropout"].model_copy(update={"levels": (0.2, 0.3, 0.6), "high": 0.6, "low": 0.2})
    assert changes_of(dropout, DEFAULT, {**knobs, "dropout": levels}) == {"dropout": 0.3}


def test_more_epochs_are_worth_the_rise_in_the_last_quarter() -> None:
    rising = Diagnosis("under-trained", "", "", 0.2)
    (epochs,) = [remedy for remedy in remedies_for(rising) if "epochs" in remedy.target]
    assert (epochs.gain, epochs.source) == (0.2, "the rise in the last quarter of the curve")


def proposals(*trials: TrialRecord, history: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    return propose(trials, trials[0], SPACE, history or {}, lambda changes: False, num_items=2420)


def test_the_first_proposal_acts_on_the_diagnosis_and_says_mechanism_gain_and_source() -> None:
    first = proposals(trial(**MEMORISED))[0]
    assert (first["source"], first["changes"], first["evidence"]) == ("memorising", {"dropout": 0.5}, "declared")
    assert first["expected_delta"] == pytest.approx(0.5 * 0.045 * 0.056, rel=0.01)
    assert first["cost_seconds"] == 16.0  # 8 epochs of 2 seconds
    assert first["reason"] == (
        "memorising (NDCG@10 0.390 on train, 0.0560 on validation): dropout 0.2 -> 0.5: training sees another thinned "
        f"model in every step; NDCG@10 is expected to change by {first['expected_delta']:+.4g} ± {first['sd']:.2g} "
        "against t001 (half of +4.5%: its usual gain, docs/engineer.md)"
    )


def test_two_diagnoses_get_a_proposal_each() -> None:
    found = proposals(trial(curve=RISING, **MEMORISED))
    assert [row["source"] for row in found] == ["under-trained", "surrogate", "memorising"]
    assert found[0]["changes"] == {"epochs": 40} and "the rise in the last quarter" in found[0]["reason"]


@pytest.mark.parametrize("record", [trial(), trial(**MEMORISED), trial(curve=RISING, popular=0.05, model=0.05)])
def test_no_proposal_expects_nothing_on_the_ground_of_nothing(record: TrialRecord) -> None:
    found = proposals(record)
    assert len(found) == 3
    for row in found:
        assert row["expected_delta"] > 0 and row["cost_seconds"] > 0 and "seen in 0" not in row["reason"]
        assert row["evidence"] == "declared" or "no trial has measured it" in row["reason"]


def test_what_the_session_has_measured_replaces_what_is_declared() -> None:
    worse = trial(2, ndcg=0.050, changes={"dropout": 0.5}, base_delta=-0.006, base_delta_se=0.0005)
    found = proposals(trial(**MEMORISED), worse)
    assert found[0]["source"] == "memorising"
    assert not any("dropout" in row["changes"] for row in found)  # the evidence expects a loss
    better = trial(2, ndcg=0.062, changes={"dropout": 0.4}, base_delta=0.006, base_delta_se=0.0005)
    (row,) = [row for row in proposals(trial(**MEMORISED), better) if "dropout" in row["changes"]]
    assert row["evidence"] == "session" and "1 trial of this session, last t002" in row["reason"]
    known = {"dropout": {"n": 20, "values": [{"value": 0.5, "n": 20, "mean_relative": 0.1, "se": 0.005}]}}
    (row,) = [row for row in proposals(trial(**MEMORISED), history=known) if "dropout" in row["changes"]]
    assert row["evidence"] == "history" and "20 trials of closed sessions" in row["reason"]


def test_moves_that_the_evidence_expects_to_lose_are_not_proposed() -> None:
    only = ActionSpace(entries=tuple(knob for knob in SPACE.entries if knob.name == "dropout"))
    losses = [
        trial(n, ndcg=0.050, changes={"dropout": value}, base_delta=-0.006, base_delta_se=0.0005)
        for n, value in enumerate((0.1, 0.3), 2)
    ]
    first = trial(**MEMORISED)
    assert propose([first], first, only, {}, lambda changes: False)
    assert propose([first, *losses], first, only, {}, lambda changes: False) == []


def config_with(**changes: Any) -> TrialConfig:
    return SPACE.resolve(DEFAULT, changes)


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        pytest.param({"hidden_dim": 256}, 2.3, id="twice the width"),
        pytest.param({"num_blocks": 2}, 1.7, id="twice the depth"),
        pytest.param({"num_negatives": 2000}, 1.75, id="four times the negatives"),
        pytest.param({"loss": "full_softmax"}, 1.96, id="the whole catalogue of 2,420 items"),
        pytest.param({"batch_size": 64}, 1.5, id="smaller batches"),
        pytest.param({"contrastive_weight": 0.1}, 2.5, id="two more passes"),
        pytest.param({"dropout": 0.5}, 1.0, id="no cost"),
        pytest.param({"epochs": 40}, 0.5 / 16, id="early stopping had ended training anyway: one scoring"),
        pytest.param({"patience": 7}, 0.5, id="at most four more epochs than eight, which are not repeated"),
        pytest.param({"patience": 7, "lr": 0.002}, 1.5, id="another training: twelve epochs"),
    ],
)
def test_measured_seconds_are_scaled_by_what_the_knobs_change(changes: dict[str, Any], factor: float) -> None:
    assert estimate_seconds(config_with(**changes), [trial()], 2420) == pytest.approx(16 * factor, rel=0.02)


def test_more_epochs_cost_more_only_where_the_limit_had_ended_training() -> None:
    longer = config_with(epochs=40)
    assert estimate_seconds(longer, [trial(curve=RISING)]) == pytest.approx(40), "the first 20 are not repeated"
    decaying = {"schedule": "cosine"}
    assert estimate_seconds(config_with(epochs=40, **decaying), [trial(curve=RISING, changes=decaying)]) == 80


def test_seconds_per_epoch_and_diagnoses_count_the_epochs_that_are_not_evaluated() -> None:
    full = trial(curve=RISING)
    assert full.outcome
    epochs = [e for e in full.outcome.curve if e["epoch"] <= 8 or e["epoch"] % 2 == 0]
    sparse = [{**e, "train_seconds": 1.5 * (1 if e["epoch"] <= 8 else 2)} for e in epochs]
    record = full.model_copy(update={"outcome": full.outcome.model_copy(update={"curve": sparse})})
    assert [d.kind for d in diagnose(record, SPACE)] == ["under-trained"]
    assert "in the last 5 of 20 epochs" in diagnose(record, SPACE)[0].short
    seconds = sum(e["train_seconds"] + e["evaluate_seconds"] for e in sparse)
    assert estimate_seconds(config_with(dropout=0.4), [record]) == pytest.approx(seconds)


def test_the_nearest_trial_is_scaled() -> None:
    wide = trial(2, changes={"hidden_dim": 256}, seconds=20.0)
    assert estimate_seconds(config_with(hidden_dim=256, dropout=0.5), [trial(), wide]) == pytest.approx(160)


def test_a_rescoring_costs_what_rescorings_cost_or_else_an_evaluation() -> None:
    config = config_with(transition_weight=4.0)
    assert estimate_seconds(config, [trial(seconds=2.0)]) == pytest.approx(0.5)  # the evaluation after an epoch
    rescored = [
        trial(number, changes={"popularity_weight": 0.1 * number}, rescored=True, train_seconds=seconds)
        for number, seconds in ((2, 1.0), (3, 3.0), (4, 5.0))
    ]
    assert estimate_seconds(config, [trial(), *rescored]) == pytest.approx(3.0)


def test_nothing_measured_gives_no_estimate() -> None:
    assert estimate_seconds(DEFAULT, []) is None
    old = trial().model_copy(update={"train_hash": "x"})
    assert old.outcome
    without = old.model_copy(update={"outcome": old.outcome.model_copy(update={"curve": [{"epoch": 1, "loss": 3.0}]})})
    assert estimate_seconds(config_with(lr=1e-3), [without]) is None
    assert relative_cost(DEFAULT.model_dump(), None) > 0


ROWS = [
    {"changes": {"dropout": 0.5, "lr": 1e-3}, "source": "pair", "evidence": "session"},
    {"changes": {"loss": "full_softmax"}, "source": "memorising", "evidence": "declared"},
]
ROWS = [{**row, "expected_delta": 0.002, "sd": 0.001, "cost_seconds": 60.0} for row in ROWS]


@pytest.mark.parametrize(
    ("changes", "source", "whole"),
    [
        ({"dropout": 0.5, "lr": 1e-3}, "pair", True),
        ({"dropout": 0.5}, "pair", False),
        ({"loss": "full_softmax", "num_blocks": 1}, "memorising", True),  # one block is what the base has
        ({"loss": "full_softmax", "num_blocks": 2}, None, None),
        ({"dropout": 0.4}, None, None),
        ({}, None, None),
    ],
)
def test_a_trial_follows_a_proposal_with_all_or_some_of_its_changes(
    changes: dict[str, Any], source: str | None, whole: bool | None
) -> None:
    found = followed(ROWS, changes, DEFAULT)
    assert (found and found.source, found and found.whole) == (source, whole)


def follower(number: int, delta: float | None, source: str = "memorising", **more: Any) -> TrialRecord:
    proposal = FollowedProposal(
        source=source, evidence="declared", changes={"dropout": 0.5}, whole=True, expected_delta=0.002, sd=0.001,
        cost_seconds=60.0,
    )  # fmt: skip
    return trial(number, proposal=proposal, base_delta=delta, base_delta_se=None if delta is None else 0.001, **more)


def test_proposals_are_scored_by_whether_the_trial_gained() -> None:
    trials = [
        trial(),
        follower(2, 0.003),
        follower(3, -0.003),
        follower(4, 0.0005, "pair"),
        follower(5, None, status="crashed", verdict="crash"),
        follower(6, None, status="crashed", verdict="crash", details={"machine_fault": True}),
        follower(7, None, status="cancelled"),
    ]
    scores = proposal_scores(trials)
    assert [(s.trial, s.came_true) for s in scores] == [
        ("t002", "yes"), ("t003", "no"), ("t004", "unclear"), ("t005", "no"), ("t006", "unclear")
    ]  # fmt: skip
    first = scores[0]
    assert (first.expected, first.sd, first.measured, first.se) == (0.002, 0.001, 0.003, 0.001)
    assert (first.cost_expected, first.cost_measured) == (60.0, 16.0)
    assert came_true_by_source(scores) == {"memorising": {"yes": 1, "no": 2, "unclear": 1}, "pair": {"unclear": 1}}


def test_proposals_keep_to_a_narrow_protocol() -> None:
    page = load_protocol().text.replace("| `dropout` | float | 0.0 … 0.8 |", "| `dropout` | float | 0.2, 0.3, 0.5 |")
    space = parse_protocol(page, source="a page with levels").space
    found = propose([trial(**MEMORISED)], trial(**MEMORISED), space, {}, lambda changes: False)
    values = [row["changes"]["dropout"] for row in found if "dropout" in row["changes"]]
    assert set(values) <= {0.3, 0.5} and found[0]["source"] == "memorising"
