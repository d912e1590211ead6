"""Long-term memory: rules that merge and are counted, search with any text, and the ranked prior for a new dataset."""

from collections.abc import Iterator
from typing import Any

import pytest

from virtualmle.data.errors import SessionError
from virtualmle.memory.records import (
    ReflectionRecord,
    RuleRecord,
    SessionRecord,
    SummaryRecord,
    TrialOutcome,
    TrialRecord,
)
from virtualmle.memory.store import Memory

SMALL = {"users": 1000, "items": 500, "density": 0.02}
LARGE = {"users": 1_000_000, "items": 300_000, "density": 0.00001}


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(None) as opened:
        yield opened


def a_session(memory: Memory, **fields: Any) -> str:
    values = {"dataset": "demo", "dataset_id": "d1", "backbone": "hstu", "profile": SMALL, **fields}
    rest = {"id": "", "protocol_hash": "p", "protocol_text": "r", "max_trials": 9, "max_train_seconds": 60.0}
    return memory.open_session(SessionRecord(**{**rest, **values})).id


def a_trial(memory: Memory, session: str, ndcg: float, **config: Any) -> str:
    handle = memory.add_trial(
        TrialRecord(session=session, handle="", number=0, base="default", changes={}, config=config, config_hash="c",
                    train_hash="t")
    ).handle  # fmt: skip
    memory.finish_trial(session, handle, TrialOutcome(status="finished", metrics={"ndcg@10": ndcg}))
    return handle


def a_rule(statement: str = "wide layers help", **fields: Any) -> RuleRecord:
    return RuleRecord(**{"kind": "prefer", "statement": statement, "backbone": "hstu", "profile": SMALL, **fields})


def test_a_rule_reads_back_as_it_was_stored(memory: Memory) -> None:
    session = a_session(memory)
    rule = a_rule(
        condition="hidden_dim > 128", dataset="demo", dataset_id="d1", session=session, evidence=["t001", "t002"],
        check="supported", support=2, contradiction=1,
    )  # fmt: skip
    stored = memory.add_rule(rule)
    assert stored == rule.model_copy(update={"id": stored.id, "created_at": stored.created_at})
    assert memory.rules() == [stored]


def test_rules_of_a_backbone_include_those_for_both(memory: Memory) -> None:
    for name, backbone in (("a", "hstu"), ("b", "sasrec"), ("c", None)):
        memory.add_rule(a_rule(name, backbone=backbone))
    assert [rule.statement for rule in memory.rules("hstu")] == ["a", "c"]
    assert [rule.statement for rule in memory.rules()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("again", "merged"),
    [
        pytest.param({"statement": "other words", "condition": "lr  >  0.1"}, True, id="same condition"),
        pytest.param({"statement": "Wide LAYERS help!", "condition": None}, True, id="same words, one condition"),
        pytest.param({"condition": "lr > 0.2"}, False, id="other condition"),
        pytest.param({"condition": "lr > 0.1", "kind": "avoid"}, False, id="other kind"),
        pytest.param({"condition": "lr > 0.1", "backbone": "sasrec"}, False, id="other backbone"),
        pytest.param({"condition": "lr > 0.1", "backbone": None}, False, id="both backbones"),
        pytest.param({"statement": "other words", "condition": None}, False, id="other words"),
    ],
)
def test_a_rule_that_says_the_same_is_merged_and_any_other_kept_apart(
    memory: Memory, again: dict[str, Any], merged: bool
) -> None:
    memory.add_rule(a_rule(condition="lr > 0.1"))
    memory.add_rule(a_rule(**{"statement": "wide layers help", **again}))
    assert len(memory.rules()) == (1 if merged else 2)


def test_merging_adds_the_counts_and_evidence_of_another_session(memory: Memory) -> None:
    first, second = a_session(memory), a_session(memory)
    memory.add_rule(a_rule(session=first, evidence=["t001"], check="supported", support=2))
    merged = memory.add_rule(a_rule(session=second, evidence=["t001"], support=1, contradiction=4, condition="lr > 1"))
    assert (merged.support, merged.contradiction, merged.check) == (3, 4, "contradicted")
    assert merged.evidence == ["t001", "demo-hstu-2:t001"]
    assert (merged.session, merged.condition) == (first, "lr > 1")


def test_a_session_that_repeats_its_rule_is_counted_once_with_its_latest_counts(memory: Memory) -> None:
    session = a_session(memory)
    memory.add_rule(a_rule(session=session, evidence=["t001"], support=1))
    rule = memory.add_rule(a_rule(session=session, evidence=["t001", "t003"], support=3, contradiction=1))
    assert (rule.support, rule.contradiction, rule.evidence) == (3, 1, ["t001", "t003"])


def test_later_sessions_update_the_counts_also_when_closed(memory: Memory) -> None:
    session, later = a_session(memory), a_session(memory)
    rule = memory.add_rule(a_rule(session=session, check="supported", support=1))
    memory.set_state(later, "open", "frozen")
    for _ in range(2):
        rule = memory.update_rule(rule.id, session=later, support=0, contradiction=1, evidence=["t002"])
        assert (rule.support, rule.contradiction, rule.check) == (1, 1, "unverified")
    assert (
        memory.update_rule(rule.id, session=later, support=0, contradiction=1, check="supported").check == "supported"
    )
    with pytest.raises(SessionError, match="unknown rule 99"):
        memory.update_rule(99, session=later, support=1, contradiction=0)


def test_only_supported_rules_to_avoid_a_condition_are_discard_heuristics(memory: Memory) -> None:
    avoid = {"kind": "avoid", "condition": "lr > 0.1", "check": "supported"}
    active = memory.add_rule(a_rule("active", **avoid))
    for name, other in {
        "prefer": {"kind": "prefer"}, "no condition": {"condition": None}, "unverified": {"check": "unverified"},
        "contradicted": {"check": "contradicted"}, "other backbone": {"backbone": "sasrec"},
    }.items():  # fmt: skip
        condition = {"condition": f"lr > {len(name)}", **other}.get("condition")
        memory.add_rule(a_rule(name, **{**avoid, **other, "condition": condition}))
    both = memory.add_rule(a_rule("both", **{**avoid, "backbone": None}))
    assert memory.avoid_rules("hstu") == [active, both]


def fill(memory: Memory) -> str:
    """A session with a rule, a reflection and a summary."""
    session = a_session(memory)
    a_trial(memory, session, 0.05)
    memory.add_reflection(
        ReflectionRecord(session=session, trial="t001", what_changed="", verdict="keep", helped="yes",
                         dimension="capacity", lesson="Dropout above 0.5 hurts; größere Modelle 模型 helfen")
    )  # fmt: skip
    memory.add_rule(a_rule("prefer dropouts of 0.2", session=session, dataset="demo"))
    memory.add_summary(
        SummaryRecord(session=session, dataset="demo", dataset_id="d1", backbone="hstu", text='set "hidden_dim" to 256')
    )
    return session


def test_search_finds_words_and_their_forms_in_rules_reflections_and_summaries(memory: Memory) -> None:
    session = fill(memory)
    assert {entry["source"] for entry in memory.search("dropout")} == {"rule", "reflection"}
    assert {entry["source"] for entry in memory.search("hidden_dim")} == {"summary"}
    assert {entry["source"] for entry in memory.search("GRÖSSERE größere")} == {"reflection"}
    assert memory.search("模型") and not memory.search("absent")
    [found] = memory.search("hidden_dim")
    assert found == {
        "source": "summary", "id": 1, "session": session, "dataset": "demo", "backbone": "hstu",
        "text": '“set "hidden_dim" to 256”',
    }  # fmt: skip
    assert len(memory.search("dropout", 1)) == 1


HOSTILE = [
    '"', "''", "AND", "OR NOT", "NEAR(dropout", "*", "dropout*", "statement:dropout", "^dropout", "(", "-dropout",
    "dropout AND", "a\x00b", "", "   ", "_", "\u202e", "🎯", "\udcff", "'; DROP TABLE rules; --", "dropout " * 5000,
]  # fmt: skip


@pytest.mark.parametrize("query", HOSTILE)
def test_no_query_breaks_the_search(memory: Memory, query: str) -> None:
    fill(memory)
    found = memory.search(query)
    assert bool(found) == ("dropout" in query)
    assert len(memory.rules()) == 1


def test_a_search_follows_changes_and_deletions_of_the_text(memory: Memory) -> None:
    session = fill(memory)
    memory.add_summary(
        SummaryRecord(session=session, dataset="demo", dataset_id="d1", backbone="hstu", text="a wholly new conclusion")
    )
    assert memory.search("conclusion") and not memory.search("hidden_dim")


def test_the_prior_leaves_out_contradicted_rules_and_ranks_by_backbone_similarity_and_confidence(
    memory: Memory,
) -> None:
    best = {"check": "supported", "support": 8}
    for statement, fields in {
        "other backbone": {**best, "backbone": "sasrec"},
        "unlike dataset": {**best, "profile": LARGE},
        "untried": {},
        "best": best,
        "for both": {**best, "backbone": None},
        "contradicted": {"check": "contradicted", "support": 9, "contradiction": 10},
    }.items():
        memory.add_rule(a_rule(statement, **fields))
    ranked = [entry["statement"] for entry in memory.prior(SMALL, "new", "hstu", 10)]
    assert ranked == ["“best”", "“for both”", "“untried”", "“other backbone”", "“unlike dataset”"]
    assert [entry["statement"] for entry in memory.prior(SMALL, "new", "hstu", 2)] == ranked[:2]
    assert memory.prior(SMALL, "new", "hstu", 0) == []


def test_a_prior_entry_says_what_it_holds_for_and_where_it_comes_from(memory: Memory) -> None:
    session = a_session(memory)
    rule = memory.add_rule(
        a_rule("say “stop”\nnow", condition="lr > 0.1", session=session, dataset="demo", dataset_id="d1", support=3,
               check="supported")
    )  # fmt: skip
    assert memory.prior(LARGE, "d1", "hstu", 5) == [{
        "id": rule.id, "kind": "prefer", "statement": '“say "stop" now”', "condition": "lr > 0.1", "backbone": "hstu",
        "dataset": "demo", "session": session, "check": "supported", "support": 3, "contradiction": 0,
        "similarity": 1.0,  # the same dataset, whatever the profile says
    }]  # fmt: skip


def test_the_portfolio_holds_the_selected_configuration_of_closed_sessions_nearest_dataset_first(
    memory: Memory,
) -> None:
    chosen = a_session(memory, dataset="near", dataset_id="n")
    a_trial(memory, chosen, 0.03, lr=0.1)
    selected = a_trial(memory, chosen, 0.04, lr=0.2)
    memory.set_state(chosen, "open", "frozen", selected=selected)
    worse = a_session(memory, dataset="near", dataset_id="n")
    a_trial(memory, worse, 0.01, lr=0.9)
    far = a_session(memory, dataset="far", dataset_id="f", profile=LARGE)
    a_trial(memory, far, 0.09, lr=0.3)
    a_trial(memory, far, 0.08, lr=0.4)
    for closed in (worse, far, a_session(memory, dataset="empty", dataset_id="e")):
        memory.set_state(closed, "open", "frozen")
    a_trial(memory, a_session(memory, dataset="still open", dataset_id="o"), 0.5)
    other = a_session(memory, dataset="other", dataset_id="x", backbone="sasrec")
    a_trial(memory, other, 0.5)
    memory.set_state(other, "open", "frozen")

    near, away = memory.portfolio(SMALL, "hstu", 5)
    assert near == {
        "dataset": "near", "session": chosen, "trial": "t002", "config": {"lr": 0.2}, "ndcg@10": 0.04, "similarity": 1.0
    }  # fmt: skip
    assert (away["dataset"], away["config"]) == ("far", {"lr": 0.3})
    assert away["similarity"] < 0.2
    assert [entry["dataset"] for entry in memory.portfolio(SMALL, "hstu", 1)] == ["near"]
    assert [entry["similarity"] for entry in memory.portfolio(SMALL, "hstu", 2, dataset_id="f")] == [1.0, 1.0]
