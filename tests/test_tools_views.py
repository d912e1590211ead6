"""The views of read_memory: their models parse everything that the tool sends and refuse unknown fields."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from virtualmle.memory.records import (
    ConfigurationRecord,
    EffectRecord,
    Hypothesis,
    ReflectionRecord,
    RuleRecord,
    TrialOutcome,
    TrialRecord,
)
from virtualmle.models.config import fingerprint, make_config, train_hash
from virtualmle.sandbox.action_space import ActionSpace
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.tools.open_session import open_session
from virtualmle.tools.read_memory import read_memory
from virtualmle.tools.results import MemoryView
from virtualmle.tools.views import (
    ActionSpaceView,
    KnobRow,
    LongTermView,
    PriorConfiguration,
    PriorEntry,
    PriorRule,
    ProtocolView,
    StateView,
    TrajectoryView,
    TrialView,
    View,
)
from virtualmle.tools.workspace import Settings, Workspace

MODELS: dict[str, type[View]] = {
    "state": StateView,
    "trajectory": TrajectoryView,
    "long_term": LongTermView,
    "action_space": ActionSpaceView,
    "protocol": ProtocolView,
}
FINISHED: dict[str, Any] = {"status": "finished", "verdict": "keep", "reason": "first", "ndcg_se": 0.001}
COMPARED = {"base_delta": 0.004, "base_delta_se": 0.001, "delta": 0.004, "delta_se": 0.001, "z": 4.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose memory holds rules, a configuration and effects from another dataset."""
    home = tmp_path_factory.mktemp("views")
    ws = Workspace.open(home, settings=Settings())
    profile = open_session(ws, "demo", "sasrec").model_dump()["profile"]
    of = {"session": "shop-sasrec-1", "dataset": "shop", "dataset_id": "d2", "backbone": "sasrec"}
    for kind, condition in (("prefer", "lr >= 0.001"), ("avoid", "dropout >= 0.7"), ("insight", None)):
        ws.memory.rules.add(
            RuleRecord(kind=kind, statement="as “they” say", condition=condition, support=3, check="supported",
                       profile=profile, **{**of, "session": ""})  # type: ignore[arg-type]
        )  # fmt: skip
    config = make_config("sasrec", lr=0.002).model_dump()
    ws.memory.measurements.add(
        [ConfigurationRecord(trial="t001", config=config, config_hash=fingerprint(config), ndcg=0.05, **of)],
        [
            EffectRecord(knob=knob, value=value, n=2, weight=1e4, weighted=300.0, **of)
            for knob, value in (("lr", 0.002), ("num_blocks", 2), ("time_bias", True), ("loss", "full_softmax"))
        ],
    )
    ws.close()
    return home


def add_trial(ws: Workspace, session: str, changes: dict[str, Any], outcome: TrialOutcome | None, **fields: Any) -> str:
    """Record a trial as if it had run; returns its handle."""
    config = load_protocol().space.resolve(load_protocol().space.default("sasrec"), changes)
    handle = ws.memory.trials.start(
        TrialRecord(
            session=session, handle="", number=0, base="default", changes=changes, config=config.model_dump(),
            config_hash=fingerprint(config.model_dump()), train_hash=train_hash(config), **fields,
        )  # fmt: skip
    ).handle
    if outcome:
        ws.memory.trials.finish(session, handle, outcome)
    return handle


@pytest.fixture(params=[{}, {"with_memory": False}], ids=["memory", "no memory"])
def ws(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A session with a trial of every status. The running trial has no process, so `sync_session` is disabled."""
    monkeypatch.setattr("virtualmle.tools.read_memory.sync_session", lambda *_: [])
    workspace = Workspace.open(home, settings=Settings(max_sessions=100, **request.param))
    session = open_session(workspace, "demo", "sasrec", new=True).session
    curve = [{"epoch": 1, "loss": 3.5, "ndcg": 0.05}]
    details = {"best_epoch": 1, "train_ndcg10": 0.2, "model_ndcg10": 0.05, "metrics_se": {"ndcg@10": 0.001}}
    first = TrialOutcome(**FINISHED, metrics={"ndcg@10": 0.05}, curve=curve, details=details, train_seconds=2.0)
    add_trial(workspace, session, {}, first, hypothesis=Hypothesis(dimension="capacity", reason="why"))
    better = TrialOutcome(**FINISHED, **COMPARED, metrics={"ndcg@10": 0.054}, incumbent_before="t001")
    add_trial(workspace, session, {"transition_weight": 8}, better, override_reason="as it helped here")
    crashed = TrialOutcome(status="crashed", verdict="crash", reason="out of memory", cause="out of memory")
    add_trial(workspace, session, {"hidden_dim": 256}, crashed)
    add_trial(workspace, session, {"time_bias": True}, TrialOutcome(status="cancelled", reason="cancelled"))
    workspace.memory.reflections.add(
        ReflectionRecord(session=session, trial="t002", what_changed="a weight", verdict="keep", helped="yes",
                         dimension="scoring", lesson="priors help", check="supported")
    )  # fmt: skip
    add_trial(workspace, session, {"lr": 0.001}, None)
    yield workspace
    workspace.close()


def latest(ws: Workspace) -> str:
    return ws.memory.sessions.all()[-1].id


@pytest.mark.parametrize("view", MODELS)
def test_a_view_survives_the_wire_without_loss(ws: Workspace, view: Any) -> None:
    sent = read_memory(ws, latest(ws), view)
    over_the_wire = MemoryView.model_validate_json(sent.model_dump_json()).content
    model = MODELS[view].model_validate(over_the_wire)
    assert model.content() == over_the_wire == sent.content
    assert list(model.content()) == list(sent.content)


@pytest.mark.parametrize("handle", ["t001", "t002", "t003", "t004", "t005"])
def test_a_trial_of_every_status_survives_the_wire_without_loss(ws: Workspace, handle: str) -> None:
    sent = read_memory(ws, latest(ws), "trial", trial=handle).content
    assert TrialView.model_validate(sent).content() == sent


def test_the_matches_of_a_search_survive_the_wire_without_loss(ws: Workspace) -> None:
    sent = read_memory(ws, latest(ws), "long_term", query="priors they say").content
    found = LongTermView.model_validate(sent)
    assert found.content() == sent and bool(found.found) == ws.settings.with_memory


def test_a_running_trial_has_no_outcome_on_the_wire(ws: Workspace) -> None:
    last = read_memory(ws, latest(ws), "trajectory").content["trials"][-1]
    assert list(last) == ["trial", "number", "base", "changes", "settings", "status", "reflected"]


def test_the_views_of_a_session_with_memory_contain_every_kind_of_row(home: Path, ws: Workspace) -> None:
    state = StateView.model_validate(read_memory(ws, latest(ws)).content)
    parts = (state.best, state.effects, state.history_effects, state.untried, state.coverage, state.proposals)
    assert all(parts) if ws.settings.with_memory else not any(parts)
    prior = TypeAdapter(list[PriorEntry]).validate_python(open_session(ws, "demo", "sasrec").prior)
    assert {type(entry) for entry in prior} == ({PriorRule, PriorConfiguration} if ws.settings.with_memory else set())


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_the_rows_of_the_action_space_correspond_to_the_knobs_of_the_sandbox(backbone: str) -> None:
    space: ActionSpace = load_protocol().space
    rows = space.describe(backbone)
    knobs = [KnobRow.model_validate(row) for row in rows]
    assert [knob.content() for knob in knobs] == [{k: v for k, v in row.items() if v is not None} for row in rows]
    offered = ActionSpace(entries=tuple(knob.to_knob(backbone) for knob in knobs))
    assert offered.describe(backbone) == rows and offered.default(backbone) == space.default(backbone)


def test_an_unknown_field_of_a_view_is_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        ProtocolView.model_validate({"sha256": "0", "rules": [], "test": {"ndcg@10": 0.1}})
