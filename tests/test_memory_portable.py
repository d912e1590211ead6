"""Export and import of cognition: merging without double counts or overwrites, and validation of files."""

import json
from pathlib import Path
from typing import Any

import pytest

from virtualmle.data.errors import ConfigError
from virtualmle.memory.portable import collect, merge, read_cognition
from virtualmle.memory.records import (
    ConfigurationRecord,
    CurveRecord,
    EffectRecord,
    RuleRecord,
    SessionRecord,
    SummaryRecord,
)
from virtualmle.memory.store import Memory

PROFILE = {"users": 1000, "items": 500}
CURVE = {
    "session": "s", "trial": "t", "dataset": "d", "dataset_id": "d1", "backbone": "hstu", "users": 9, "config": {},
    "epochs": [1, 2], "ndcg10": [0.1, 0.2],
}  # fmt: skip


def filled_memory(path: Path | None = None, *, support: int = 2, statement: str = "wide layers help") -> Memory:
    """A memory with a session that has stored one entry of each kind."""
    memory = Memory(path)
    session = memory.sessions.open(SessionRecord(
        id="", dataset="demo", dataset_id="d1", backbone="hstu", protocol_hash="p", protocol_text="r", max_trials=9,
        max_train_seconds=60.0, profile=PROFILE,
    )).id  # fmt: skip
    source = {"session": session, "dataset": "demo", "dataset_id": "d1", "backbone": "hstu"}
    memory.rules.add(RuleRecord(
        kind="prefer", statement=statement, condition="hidden_dim > 128", support=support, evidence=["t001"],
        profile=PROFILE, **source,
    ))  # fmt: skip
    memory.summaries.add(SummaryRecord(text="wide wins", computed={"trials": 3}, profile=PROFILE, **source))
    config = ConfigurationRecord(trial="t001", config={"lr": 0.1}, config_hash="c", ndcg=0.05, **source)
    effect = EffectRecord(knob="lr", value=0.1, n=1, weight=1e4, weighted=500.0, **source)
    curve = CurveRecord(trial="t001", users=1000, config={"lr": 0.1}, epochs=[1, 2], ndcg10=[0.02, 0.05], **source)
    memory.measurements.add([config], [effect], [curve])
    return memory


def visible_knowledge(memory: Memory) -> dict[str, Any]:
    """The knowledge that a later session would get."""
    knowledge = memory.knowledge()
    rules = knowledge.prior(PROFILE, "d1", "hstu")
    return {
        "rules": [{**rule, "session": None} for rule in rules],
        "effects": knowledge.pooled_effects("hstu"),
        "portfolio": [{**entry, "session": None} for entry in knowledge.portfolio(PROFILE, "", "hstu")],
        "curves": [(curve.epochs, curve.ndcg10) for curve in knowledge.curves("hstu")],
        "summaries": [summary.text for summary in memory.summaries.all()],
    }


def test_an_import_into_an_empty_memory_gives_the_same_knowledge(tmp_path: Path) -> None:
    file = tmp_path / "cognition.json"
    with filled_memory() as first, Memory(None) as second:
        file.write_text(collect(first).model_dump_json())
        merged = merge(second, read_cognition(file))
        assert set(merged.model_dump().values()) == {1}, "one row in every table"
        assert visible_knowledge(second) == visible_knowledge(first)


def test_a_second_import_and_an_import_of_ones_own_export_have_no_effect() -> None:
    with filled_memory() as first, Memory(None) as second:
        before, sessions = visible_knowledge(first), first.rules.all()[0].session
        merge(second, collect(first))
        for cognition in (collect(first), collect(second)):  # its own export, directly and through another memory
            assert not any(merge(first, cognition).model_dump().values())
        assert visible_knowledge(first) == before and first.rules.all()[0].session == sessions
        assert not any(merge(second, collect(first)).model_dump().values())


def test_sessions_with_equal_names_from_two_homes_add_up_without_overwriting() -> None:
    with filled_memory(support=2) as first, filled_memory(support=5, statement="broad layers help") as second:
        merged = merge(first, collect(second))
        assert (merged.rules, merged.counts, merged.summaries) == (0, 1, 1)
        rule = first.rules.all()[0]
        assert (rule.support, rule.statement) == (7, "wide layers help")
        assert first.knowledge().pooled_effects("hstu")["lr"]["n"] == 2


def test_a_file_contains_its_origin_and_no_data_of_users_or_items() -> None:
    with filled_memory() as memory:
        content = json.loads(collect(memory).model_dump_json())
    assert content["format"] == "virtualmle-cognition" and content["schema_version"] == 1
    assert content["rules"][0]["counts"][0]["session"] == f"{content['origin']}:demo-hstu-1"
    assert set(content) == {
        "format", "schema_version", "origin", "datasets", "rules", "summaries", "effects", "configurations", "curves"
    }  # fmt: skip
    assert content["datasets"] == {"d1": PROFILE}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        pytest.param({"schema_version": 2}, "schema_version", id="a newer schema"),
        pytest.param({"format": "other"}, "format", id="another format"),
        pytest.param({"origin": "../../etc"}, "origin", id="an invalid origin"),
        pytest.param({"more": 1}, "more", id="an unknown key"),
        pytest.param({"rules": [{"kind": "obey"}]}, "rules.0", id="an invalid rule"),
        pytest.param({"rules": "all"}, "rules", id="not a list"),
        pytest.param({"curves": [CURVE | {"epochs": [2, 1]}]}, "curves.0", id="a curve that runs backwards"),
        pytest.param({"curves": [CURVE | {"ndcg10": [0.1]}]}, "curves.0", id="a curve with too few values"),
    ],
)
def test_an_invalid_file_is_refused_and_nothing_is_imported(
    tmp_path: Path, change: dict[str, Any], place: str
) -> None:
    file = tmp_path / "cognition.json"
    with filled_memory() as memory:
        file.write_text(json.dumps(json.loads(collect(memory).model_dump_json()) | change))
    with pytest.raises(ConfigError, match=rf"{place}.*nothing was imported"):
        read_cognition(file)
    file.write_text("{not json")
    with pytest.raises(ConfigError, match="not a cognition file that this version can read"):
        read_cognition(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_cognition(tmp_path / "missing.json")


def test_imported_texts_are_sanitised_like_those_of_agents() -> None:
    with filled_memory(statement="plain") as first, Memory(None) as second:
        cognition = collect(first)
        rule = cognition.rules[0].model_copy(update={"statement": "obey\u202eme\x1b[31m" + "x" * 9000})
        merge(second, cognition.model_copy(update={"rules": [rule]}))
        statement = second.rules.all()[0].statement
    assert statement.startswith("obeyme[31mx") and len(statement) <= 600
