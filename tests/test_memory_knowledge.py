"""Long-term memory: merging and counts of rules, full-text search, the ranked prior, portfolio, pooled effects."""

from collections.abc import Iterator
from typing import Any

import pytest

from virtualmle.memory.records import (
    ConfigurationRecord,
    EffectRecord,
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
    return memory.sessions.open(SessionRecord(**{**rest, **values})).id


def a_trial(memory: Memory, session: str, ndcg: float, **config: Any) -> str:
    handle = memory.trials.start(
        TrialRecord(session=session, handle="", number=0, base="default", changes={}, config=config, config_hash="c",
                    train_hash="t")
    ).handle  # fmt: skip
    memory.trials.finish(session, handle, TrialOutcome(status="finished", metrics={"ndcg@10": ndcg}))
    return handle


def a_rule(statement: str = "wide layers help", **fields: Any) -> RuleRecord:
    return RuleRecord(**{"kind": "prefer", "statement": statement, "backbone": "hstu", "profile": SMALL, **fields})


def test_a_rule_is_read_as_stored(memory: Memory) -> None:
    session = a_session(memory)
    rule = a_rule(
        condition="hidden_dim > 128", dataset="demo", dataset_id="d1", session=session, evidence=["t001", "t002"],
        check="supported", support=2, contradiction=1,
    )  # fmt: skip
    stored = memory.rules.add(rule)
    assert stored == rule.model_copy(update={"id": stored.id, "created_at": stored.created_at})
    assert memory.rules.all() == [stored]


def test_rules_of_a_backbone_include_those_for_both(memory: Memory) -> None:
    for name, backbone in (("a", "hstu"), ("b", "sasrec"), ("c", None)):
        memory.rules.add(a_rule(name, backbone=backbone))
    assert [rule.statement for rule in memory.rules.all("hstu")] == ["a", "c"]
    assert [rule.statement for rule in memory.rules.all()] == ["a", "b", "c"]


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
def test_equivalent_rules_are_merged_and_others_are_not(
    memory: Memory, again: dict[str, Any], merged: bool
) -> None:
    memory.rules.add(a_rule(condition="lr > 0.1"))
    memory.rules.add(a_rule(**{"statement": "wide layers help", **again}))
    assert len(memory.rules.all()) == (1 if merged else 2)


def test_merging_adds_the_counts_and_evidence_of_another_session(memory: Memory) -> None:
    first, second = a_session(memory), a_session(memory)
    memory.rules.add(a_rule(session=first, evidence=["t001"], check="supported", support=2))
    merged = memory.rules.add(a_rule(session=second, evidence=["t001"], support=1, contradiction=4, condition="lr > 1"))
    assert (merged.support, merged.contradiction, merged.check) == (3, 4, "contradicted")
    assert merged.evidence == ["t001", "demo-hstu-2:t001"]
    assert (merged.session, merged.condition) == (first, "lr > 1")


def test_a_repeated_rule_of_one_session_has_its_latest_counts(memory: Memory) -> None:
    session = a_session(memory)
    memory.rules.add(a_rule(session=session, evidence=["t001"], support=1))
    rule = memory.rules.add(a_rule(session=session, evidence=["t001", "t003"], support=3, contradiction=1))
    assert (rule.support, rule.contradiction, rule.evidence) == (3, 1, ["t001", "t003"])


def test_later_sessions_update_the_counts_even_if_closed(memory: Memory) -> None:
    session, later = a_session(memory), a_session(memory)
    rule = memory.rules.add(a_rule(session=session, check="supported", support=1))
    memory.sessions.set_state(later, "open", "frozen")
    for _ in range(2):
        memory.rules.count(later, {rule.id: (0, 1, ["t002"])})
        rule = memory.rules.get(rule.id)
        assert (rule.support, rule.contradiction, rule.check) == (1, 1, "unverified")


def test_only_supported_avoid_rules_with_a_condition_are_discard_heuristics(memory: Memory) -> None:
    avoid = {"kind": "avoid", "condition": "lr > 0.1", "check": "supported", "support": 1}
    active = memory.rules.add(a_rule("active", **avoid))
    for name, other in {
        "prefer": {"kind": "prefer"}, "no condition": {"condition": None}, "unverified": {"check": "unverified"},
        "contradicted": {"check": "contradicted"}, "other backbone": {"backbone": "sasrec"},
        "supported, but not clearly": {"support": 2, "contradiction": 1},
    }.items():  # fmt: skip
        condition = {"condition": f"lr > {len(name)}", **other}.get("condition")
        memory.rules.add(a_rule(name, **{**avoid, **other, "condition": condition}))
    both = memory.rules.add(a_rule("both", **{**avoid, "backbone": None}))
    avoid_rules = memory.knowledge().avoid_rules
    found = [rule.id for rule in avoid_rules("hstu")]
    assert found == [rule.id for rule in avoid_rules("hstu", ["lr", "dropout"])] == [active.id, both.id]
    assert avoid_rules("hstu", ["dropout"]) == []


def fill(memory: Memory) -> str:
    """A session with a rule, a reflection and a summary."""
    session = a_session(memory)
    a_trial(memory, session, 0.05)
    memory.reflections.add(
        ReflectionRecord(session=session, trial="t001", what_changed="", verdict="keep", helped="yes",
                         dimension="capacity", lesson="Dropout above 0.5 hurts; größere Modelle 模型 helfen")
    )  # fmt: skip
    memory.rules.add(a_rule("prefer dropouts of 0.2", session=session, dataset="demo"))
    memory.summaries.add(
        SummaryRecord(session=session, dataset="demo", dataset_id="d1", backbone="hstu", text='set "hidden_dim" to 256')
    )
    return session


def test_search_finds_words_and_their_forms_in_rules_reflections_and_summaries(memory: Memory) -> None:
    session = fill(memory)
    assert {entry["source"] for entry in memory.knowledge().search("dropout")} == {"rule", "reflection"}
    assert {entry["source"] for entry in memory.knowledge().search("hidden_dim")} == {"summary"}
    assert {entry["source"] for entry in memory.knowledge().search("GRÖSSERE größere")} == {"reflection"}
    assert memory.knowledge().search("模型") and not memory.knowledge().search("absent")
    [found] = memory.knowledge().search("hidden_dim")
    assert found == {
        "source": "summary", "id": 1, "session": session, "dataset": "demo", "backbone": "hstu",
        "text": '“set "hidden_dim" to 256”',
    }  # fmt: skip
    assert len(memory.knowledge().search("dropout", 1)) == 1


def test_a_query_in_words_finds_what_is_said_of_the_knob(memory: Memory) -> None:
    session = a_session(memory)
    trial = a_trial(memory, session, 0.05)
    memory.rules.add(a_rule("bigger steps reach the optimum sooner", condition="lr >= 0.001"))
    memory.rules.add(a_rule("wide models overfit", condition="hidden_dim > 128"))
    memory.reflections.add(
        ReflectionRecord(session=session, trial=trial, what_changed="lr", verdict="keep", helped="yes",
                         dimension="optimisation", lesson="lr was too low")
    )  # fmt: skip
    found = [entry["text"] for entry in memory.knowledge().search("learning rate")]
    assert sorted(found) == ["“bigger steps reach the optimum sooner”", "“lr was too low”"]
    assert [entry["text"] for entry in memory.knowledge().search("embedding size")] == ["“wide models overfit”"]


HOSTILE = [
    '"', "''", "AND", "OR NOT", "NEAR(dropout", "*", "dropout*", "statement:dropout", "^dropout", "(", "-dropout",
    "dropout AND", "a\x00b", "", "   ", "_", "\u202e", "🎯", "\udcff", "'; DROP TABLE rules; --", "dropout " * 5000,
]  # fmt: skip


@pytest.mark.parametrize("query", HOSTILE)
def test_any_text_is_a_valid_search_query(memory: Memory, query: str) -> None:
    fill(memory)
    found = memory.knowledge().search(query)
    assert bool(found) == ("drop" in query.casefold())  # "drop" is another name of the knob dropout
    assert len(memory.rules.all()) == 1


def test_the_search_index_follows_changes_of_the_text(memory: Memory) -> None:
    session = fill(memory)
    memory.summaries.add(
        SummaryRecord(session=session, dataset="demo", dataset_id="d1", backbone="hstu", text="a wholly new conclusion")
    )
    assert memory.knowledge().search("conclusion") and not memory.knowledge().search("hidden_dim")


def test_the_prior_omits_contradicted_rules_and_ranks_by_backbone_similarity_and_confidence(
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
        memory.rules.add(a_rule(statement, **fields))
    ranked = [entry["statement"] for entry in memory.knowledge().prior(SMALL, "new", "hstu", 10)]
    assert ranked == ["“best”", "“for both”", "“untried”", "“other backbone”", "“unlike dataset”"]
    assert [entry["statement"] for entry in memory.knowledge().prior(SMALL, "new", "hstu", 2)] == ranked[:2]
    assert memory.knowledge().prior(SMALL, "new", "hstu", 0) == []


def test_a_prior_entry_names_its_scope_and_source(memory: Memory) -> None:
    session = a_session(memory)
    rule = memory.rules.add(
        a_rule("say “stop”\nnow", condition="lr > 0.1", session=session, dataset="demo", dataset_id="d1", support=3,
               check="supported")
    )  # fmt: skip
    assert memory.knowledge().prior(LARGE, "d1", "hstu", 5) == [{
        "id": rule.id, "kind": "prefer", "statement": '“say "stop" now”', "condition": "lr > 0.1", "backbone": "hstu",
        "dataset": "demo", "session": session, "check": "supported", "support": 3, "contradiction": 0,
        "confidence": 0.8, "similarity": 1.0,  # the same dataset, whatever the profile says
    }]  # fmt: skip


def a_configuration(dataset: str, session: str, trial: str, ndcg: float, **config: Any) -> ConfigurationRecord:
    return ConfigurationRecord(session=session, trial=trial, dataset=dataset, dataset_id=dataset, backbone="hstu",
                               config=config, config_hash=str(config), ndcg=ndcg, gain=0.1)  # fmt: skip


def test_the_portfolio_selects_the_best_on_average_and_then_complements_it(memory: Memory) -> None:
    for dataset, profile in {"a": SMALL, "b": SMALL, "c": SMALL, "far": LARGE}.items():
        a_session(memory, dataset=dataset, dataset_id=dataset, profile=profile)
    memory.measurements.add([
        a_configuration("a", "a-1", "t1", 0.09, lr=1), a_configuration("a", "a-1", "t2", 0.08, lr=2),
        a_configuration("b", "b-1", "t1", 0.05, lr=3), a_configuration("b", "b-1", "t2", 0.04, lr=2),
        a_configuration("c", "c-1", "t1", 0.03, lr=2), a_configuration("c", "c-1", "t2", 0.02, lr=9),
        a_configuration("far", "far-1", "t1", 0.5, lr=4),
    ], [])  # fmt: skip
    portfolio = memory.knowledge().portfolio
    chosen = portfolio(SMALL, "", "hstu")
    # lr=2 ranks 2nd, 2nd and 1st; then the best of a and b; dataset far is too dissimilar to precede them
    assert [entry["config"]["lr"] for entry in chosen] == [2, 1, 3, 4, 9]
    assert chosen[1] == {
        "dataset": "a", "session": "a-1", "trial": "t1", "config": {"lr": 1}, "gain": 0.1, "ndcg@10": 0.09,
        "similarity": 1.0,
    }  # fmt: skip
    assert chosen[3]["similarity"] < 0.2
    assert [entry["config"]["lr"] for entry in portfolio(SMALL, "", "hstu", 1)] == [2]
    assert [entry["config"]["lr"] for entry in portfolio(LARGE, "far", "hstu", 1)] == [4]
    assert [entry["config"]["lr"] for entry in memory.knowledge(["b"]).portfolio(SMALL, "", "hstu")] == [3, 2]
    assert portfolio(SMALL, "", "sasrec") == portfolio(SMALL, "", "hstu", 0) == []


def an_effect(session: str, dataset: str, mean: float, se: float, value: Any = 0.1, n: int = 1) -> EffectRecord:
    return EffectRecord(session=session, dataset=dataset, dataset_id=dataset, backbone="hstu", knob="lr", value=value,
                        n=n, weight=se**-2, weighted=mean * se**-2)  # fmt: skip


def test_effects_of_closed_sessions_are_pooled_by_inverse_variance_and_counted_once(memory: Memory) -> None:
    rows = [an_effect("s1", "a", 0.10, 0.01, n=2), an_effect("s2", "b", 0.12, 0.02)]
    rows.append(an_effect("s1", "a", 0.0, 0.01, value=0.2))
    for _ in range(2):  # a session that is stored twice counts once
        memory.measurements.add([], rows)
    effect = memory.knowledge().pooled_effects("hstu")["lr"]
    assert (effect["n"], effect["datasets"]) == (4, 2)
    value = next(row for row in effect["values"] if row["value"] == 0.1)
    assert value["n"] == 3
    assert value["mean_relative"] == pytest.approx((0.10 / 1 + 0.12 / 4) / (1 + 1 / 4))
    assert value["se"] == pytest.approx(0.01 / (1 + 1 / 4) ** 0.5)
    assert memory.knowledge(["b"]).pooled_effects("hstu")["lr"]["mean_relative"] == pytest.approx(0.12)
    assert memory.knowledge().pooled_effects("sasrec") == {}


def test_disagreement_between_datasets_widens_the_interval_of_the_mean(memory: Memory) -> None:
    memory.measurements.add([], [an_effect("s1", "a", 0.1, 0.01), an_effect("s2", "b", -0.1, 0.01)])
    effect = memory.knowledge().pooled_effects("hstu")["lr"]
    # Q = 2 * (0.1 / 0.01)^2 = 200 with one degree of freedom: the error grows from 0.01 / sqrt(2) by sqrt(200)
    assert effect["mean_relative"] == pytest.approx(0.0, abs=1e-12)
    assert effect["se"] == pytest.approx(0.1)
    assert effect["interval"] == pytest.approx([-0.196, 0.196])


def test_a_scope_restricts_counts_to_sessions_on_its_datasets(memory: Memory) -> None:
    here, there = a_session(memory, dataset="a", dataset_id="a"), a_session(memory, dataset="b", dataset_id="b")
    rule = {"kind": "avoid", "condition": "lr > 0.1", "dataset": "a", "dataset_id": "a"}
    memory.rules.add(a_rule("high rates diverge", **rule, session=here, support=1))
    memory.rules.add(a_rule("high rates diverge", **rule, session=there, support=5, contradiction=1))
    counts = {
        datasets: [(e["support"], e["contradiction"]) for e in memory.knowledge(datasets).prior(SMALL, "", "hstu")]
        for datasets in ((), ("a",), ("b",), ("c",))
    }
    assert counts == {(): [(6, 1)], ("a",): [(1, 0)], ("b",): [(5, 1)], ("c",): []}
    assert [rule.support for rule in memory.knowledge(["a"]).avoid_rules("hstu")] == [1]
    assert memory.knowledge(["c"]).avoid_rules("hstu") == []
    assert [rule.support for rule in memory.knowledge(["c"]).avoid_rules("hstu", session=there)] == [5]


def test_a_rule_that_trials_contradict_is_not_in_the_prior(memory: Memory) -> None:
    rules = {name: memory.rules.add(a_rule(name, condition=f"lr > {i}", support=3)).id for i, name in enumerate("ab")}
    later = a_session(memory)
    memory.rules.count(later, {rules["a"]: (0, 11, [])})
    assert [entry["id"] for entry in memory.knowledge().prior(SMALL, "", "hstu")] == [rules["b"]]


@pytest.mark.parametrize(
    ("again", "merged"),
    [
        pytest.param("Wider layers are helping, more.", True, id="other endings, order and stop words"),
        pytest.param("wider layers do not help", False, id="a negation"),
        pytest.param("wider layers help at 256", False, id="a number"),
    ],
)
def test_insights_with_equal_content_words_are_merged(memory: Memory, again: str, merged: bool) -> None:
    memory.rules.add(a_rule("wider layers help", kind="insight"))
    memory.rules.add(a_rule(again, kind="insight"))
    assert len(memory.rules.all()) == (1 if merged else 2)


def test_reflections_with_nearly_equal_lessons_are_merged(memory: Memory) -> None:
    session = a_session(memory)
    lessons = ["wider layers help on this data", "on this data, wider layers helped", "wider layers do not help here"]
    stored = []
    for lesson in lessons:
        trial = a_trial(memory, session, 0.05)
        stored.append(memory.reflections.add(ReflectionRecord(
            session=session, trial=trial, what_changed="x", verdict="keep", helped="yes", dimension="capacity",
            lesson=lesson, check="supported",
        )))  # fmt: skip
    assert [(r.merged_into, r.times_said) for r in stored] == [(None, 1), ("t001", 2), (None, 1)]
    assert [r.times_said for r in memory.reflections.all(session)] == [2, 2, 1]
    unlike = a_trial(memory, session, 0.05)
    other = memory.reflections.add(stored[0].model_copy(update={"trial": unlike, "check": "contradicted"}))
    assert other.merged_into is None  # the same words, but contradicted by the numbers
