"""Arguments as clients send them, and what a refusal says; the schemas by which they are read."""

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from virtualmle.data.errors import ArgumentError
from virtualmle.server.app import TOOLS
from virtualmle.server.arguments import MAX_DEPTH, MAX_TEXT, read_arguments
from virtualmle.server.schemas import input_schema, published

SCHEMAS = {tool.__name__: input_schema(tool) for tool, _ in TOOLS}
SESSION = {"session": "demo-sasrec-1"}
MOST_BYTES = 8400  # of all input schemas and descriptions: every client carries them in its context
REFLECTION = {**SESSION, "trial": "t001", "helped": "yes", "dimension": "capacity", "lesson": "wider is better"}


def read(tool: str, **given: Any) -> dict[str, Any]:
    return read_arguments(tool, SCHEMAS[tool], given)


def refusal(tool: str, **given: Any) -> str:
    with pytest.raises(ArgumentError) as error:
        read(tool, **given)
    return str(error.value)


def nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with its path."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


@pytest.mark.parametrize("tool", SCHEMAS)
def test_a_schema_has_nothing_that_a_converter_loses(tool: str) -> None:
    schema = published(SCHEMAS[tool])
    assert not re.search(r'"(anyOf|allOf|oneOf|\$ref|\$defs|title|default|minLength|maxLength)":', json.dumps(schema))
    for path, node in nodes(schema, tool):
        assert set(node) <= {"type", "description", "enum", "items", "properties", "required"}
        assert node["type"] in ("string", "number", "boolean", "array", "object"), path
        assert path.endswith("[]") or path == tool or node.get("description"), f"{path} has no description"


def test_only_changes_and_settings_are_open_and_each_has_a_closed_form_beside_it() -> None:
    every = [found for tool, schema in SCHEMAS.items() for found in nodes(schema, tool) if tool != "list_sessions"]
    open_objects = [path for path, node in every if node["type"] == "object" and not node["properties"]]
    assert open_objects == ["run_trial.changes", "sweep.settings[]"]
    assert set(SCHEMAS["run_trial"]["properties"]["changes_list"]["items"]["properties"]) == {"knob", "value"}
    assert SCHEMAS["sweep"]["properties"]["settings_list"]["items"] == {"type": "string"}


def test_inputs_and_descriptions_stay_short() -> None:
    texts = [inspect.getdoc(inspect.unwrap(tool)) or "" for tool, _ in TOOLS]
    schemas = [json.dumps(published(schema), separators=(",", ":")) for schema in SCHEMAS.values()]
    assert sum(len(text.encode()) for text in texts + schemas) <= MOST_BYTES


@pytest.mark.parametrize("tool", SCHEMAS)
def test_null_and_empty_optional_arguments_count_as_left_out(tool: str) -> None:
    schema = SCHEMAS[tool]
    given = {name: "x" for name in schema.get("required", [])}
    given |= {name: schema["properties"][name]["enum"][0] for name in given if "enum" in schema["properties"][name]}
    optional = set(schema["properties"]) - set(given)
    for nothing in (None, "", "  "):
        assert read(tool, **given, **dict.fromkeys(optional, nothing)) == given
    for name in given:
        assert name in refusal(tool, **(given | {name: None}))


def test_an_object_that_a_strict_client_had_to_send_is_left_out_if_it_says_nothing() -> None:
    nothing = {"dimension": "", "direction": "better", "size": 0, "reason": ""}
    assert read("run_trial", **SESSION, hypothesis=nothing) == SESSION
    assert read("run_trial", **SESSION, hypothesis={}) == SESSION
    rule = {"kind": "insight", "statement": "", "condition": "", "evidence": []}
    assert read("write_reflection", **REFLECTION, rule=rule) == REFLECTION
    assert read("write_reflection", **REFLECTION, rule=rule | {"statement": "x"})["rule"] == {
        "kind": "insight", "statement": "x", "evidence": [],
    }  # fmt: skip
    unsaid = {"kind": "avoid", "condition": "lr > 1"}
    assert "rule needs statement" in refusal("write_reflection", **REFLECTION, rule=unsaid)


@pytest.mark.parametrize(
    ("tool", "given", "expected"),
    [
        pytest.param("open_session", {"dataset": "demo", "backbone": " SASRec"}, {"backbone": "sasrec"}, id="any case"),
        pytest.param("read_memory", {"session": "s", "view": "Long-Term"}, {"view": "long_term"}, id="a hyphen"),
        pytest.param("run_trial", {"session": "s", "base": ""}, {}, id="base left out"),
        pytest.param("run_trial", {"session": "s", "changes": '{"lr": 0.001}'}, {"changes": {"lr": 0.001}}, id="JSON"),
        pytest.param("run_trial", {"session": "s", "changes": "null"}, {}, id="null as text"),
        pytest.param("run_trial", {"session": "s", "wait_seconds": "30"}, {"wait_seconds": 30}, id="a number as text"),
        pytest.param("run_trial", {"session": "s", "changes_list": [{"knob": "lr", "value": 0.001}]},
                     {"changes_list": [{"knob": "lr", "value": "0.001"}]}, id="a value that is a number"),
        pytest.param("run_trial", {"session": "s", "changes_list": [{"knob": "causal", "value": False}]},
                     {"changes_list": [{"knob": "causal", "value": "false"}]}, id="a value that is a boolean"),
        pytest.param("run_trial", {"session": "s", "changes_list": [{"knob": "ensemble", "value": ["t001", "t002"]}]},
                     {"changes_list": [{"knob": "ensemble", "value": "t001, t002"}]}, id="a value that is a list"),
        pytest.param("run_trial", {"session": "s", "changes_list": '[{"knob": "lr", "value": "1"}]'},
                     {"changes_list": [{"knob": "lr", "value": "1"}]}, id="a list as JSON"),
        pytest.param("wait_trial", {"session": "s", "trial": ["t001", "t002"]}, {"trial": "t001, t002"}, id="trials"),
        pytest.param("open_session", {"dataset": "demo", "backbone": "hstu", "new": 1.0}, {"new": True}, id="1.0"),
        pytest.param("sweep", {"session": "s", "settings_list": "a=4, b=x"}, {"settings_list": ["a=4, b=x"]},
                     id="a list of one text"),
        pytest.param("finalize", {"session": "s", "cognition_summary": "x", "confirm": "True"}, {"confirm": True},
                     id="a boolean as text"),
    ],
)  # fmt: skip
def test_arguments_are_read_leniently(tool: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    found = read(tool, **given)
    kept = {name: value for name, value in given.items() if name in SCHEMAS[tool]["required"]}
    assert found == kept | expected


@pytest.mark.parametrize(
    ("tool", "given", "said"),
    [
        ("run_trial", {}, "run_trial needs session (session id)"),
        ("write_reflection", SESSION, "write_reflection needs trial, helped, dimension and lesson"),
        ("open_session", {"dataset": "demo", "backbone": "gru"}, "backbone='gru' is not one of sasrec, hstu"),
        ("read_memory", {**SESSION, "view": "trials"}, "protocol, brief (did you mean trial?)"),
        ("run_trial", {**SESSION, "wait_seconds": "soon"}, "wait_seconds='soon' is not a number (most seconds to wait"),
        ("run_trial", {**SESSION, "wait_seconds": True}, "wait_seconds=True is not a number"),
        ("run_trial", {**SESSION, "wait_seconds": -1}, "wait_seconds=-1 is below 0; give at least 0"),
        ("run_trial", {**SESSION, "wait_seconds": float("nan")}, "wait_seconds is not a finite number"),
        ("run_trial", {**SESSION, "wait_seconds": float("inf")}, "wait_seconds is not a finite number"),
        ("run_trial", {**SESSION, "wait_seconds": 10**4000}, "wait_seconds is not a finite number"),
        ("run_trial", {**SESSION, "wait_seconds": 1 - 2**999}, "is below 0"),
        ("run_trial", {**SESSION, "changes": "lr=3"}, "changes='lr=3' is not an object (knobs to change"),
        ("run_trial", {**SESSION, "hypothesis": "wider"}, "is not an object with dimension, direction, size, reason"),
        ("run_trial", {**SESSION, "hypothesis": {"dimension": "capacity", "direction": "up"}},
         "hypothesis.direction='up' is not one of better, worse, same, unknown"),
        ("run_trial", {**SESSION, "hypothesis": {"dimension": "capacity", "expected": 1}},
         "hypothesis has no property 'expected'; its properties are dimension, direction, size and reason"),
        ("run_trial", {**SESSION, "changes_list": [{"knob": "lr", "value": "1"}, {"knob": "lr"}]},
         "changes_list[2] needs value"),
        ("run_trial", {**SESSION, "changes_list": [{"knob": "lr", "val": "1"}]}, "'val' (did you mean value?)"),
        ("finalize", {**SESSION, "cognition_summary": "x", "confirm": "yes"}, "confirm='yes' is not true or false"),
        ("write_reflection", {**REFLECTION, "evidence": ["t001"] * 51}, "evidence has 51 entries; give at most 50"),
        ("write_reflection", {**REFLECTION, "lesson": "x" * (MAX_TEXT + 1)}, "lesson has a text of 50,001 characters"),
        ("write_reflection", {**REFLECTION, "rule": {"kind": "avoid", "statement": "x" * 2001}},
         "rule.statement has 2,001 characters; give at most 2,000"),
        ("write_reflection", {**REFLECTION, "lesson": {}}, "lesson={} is not a text (what the trial taught"),
        ("open_session", {"dataset": "demo", "backbone": "hstu", "seed": 7},
         "no argument 'seed'; its arguments are dataset, backbone, new; seeds belong to the server"),
        ("open_session", {"dataset": "demo", "model": "hstu"}, "no argument 'model' (did you mean backbone?)"),
        ("run_trial", {"session_id": "s"}, "no argument 'session_id' (did you mean session?)"),
        ("run_trial", {**SESSION, "learning_rate": 1}, "'learning_rate' (did you mean the knob lr?)"),
        ("run_trial", {**SESSION, "lr": 1}, "knobs go inside `changes`"),
        ("sweep", {**SESSION, "transition_weight": 1}, "knobs go inside `settings`"),
        ("list_sessions", {"verbose": True}, "list_sessions has no argument 'verbose'; its arguments are none"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_that_says_what_to_correct(tool: str, given: dict[str, Any], said: str) -> None:
    text = refusal(tool, **given)
    assert said in text and len(text) < 500
    assert not re.search(r"pydantic|_type|https?:|\n|Input should", text)


def test_names_in_one_text_are_a_list() -> None:
    assert read("write_reflection", **REFLECTION, evidence=" t001, a-1/t002")["evidence"] == ["t001", "a-1/t002"]


@pytest.mark.parametrize("as_text", [False, True], ids=["sent as it is", "sent as JSON text"])
def test_deep_nesting_is_refused(as_text: bool) -> None:
    deep: Any = 0
    for _ in range(MAX_DEPTH):
        deep = {"a": [deep]}
    given = json.dumps(deep) if as_text else deep
    assert "changes is nested in more than 8 levels" in refusal("run_trial", **SESSION, changes=given)
    assert "is not an object" in refusal("run_trial", **SESSION, changes="[" * 10_000)


def test_a_refusal_of_many_unknown_arguments_stays_short() -> None:
    text = refusal("run_trial", **SESSION, **{f"{number}-{'x' * 300}": 1 for number in range(200)})
    assert len(text) < 1500


def test_true_and_false_are_yes_and_no_where_these_are_the_choices() -> None:
    assert read("write_reflection", **{**REFLECTION, "helped": True})["helped"] == "yes"
    assert read("write_reflection", **{**REFLECTION, "helped": "False"})["helped"] == "no"
    assert "is not one of" in refusal("read_memory", **SESSION, view=True)


def test_entries_that_a_strict_client_filled_with_nothing_are_left_out() -> None:
    nothing = {"kind": "avoid", "statement": "", "condition": "", "evidence": []}
    ending = {**SESSION, "cognition_summary": "wider is better"}
    assert read("finalize", **ending, rules=[nothing])["rules"] == []
    assert read("run_trial", **SESSION, changes_list=[{"knob": "", "value": ""}])["changes_list"] == []
    assert read("sweep", **SESSION, settings=[{}])["settings"] == [{}], "the base itself is a setting"


def test_a_required_text_that_is_blank_is_missing() -> None:
    assert refusal("finalize", **SESSION, cognition_summary=" ").startswith("finalize needs cognition_summary (what")
    assert refusal("wait_trial", session="").startswith("wait_trial needs session")


@pytest.mark.parametrize(
    ("text", "number"), [(".0773", 0.0773), ("+.0773", 0.0773), ("-.02", -0.02), ("+1", 1), ("1e-3", 1e-3)]
)
def test_a_number_may_be_sent_as_the_tools_write_it(text: str, number: float) -> None:
    assert read("write_reflection", **REFLECTION, effect=text)["effect"] == number


@pytest.mark.parametrize("text", ["nan", "inf", "1_000", "0x10", "t001", "1" * 400, "."])
def test_a_text_that_is_no_finite_number_is_refused(text: str) -> None:
    assert "effect" in refusal("write_reflection", **REFLECTION, effect=text)


def test_an_empty_list_counts_as_left_out_and_one_object_as_a_list_of_one() -> None:
    assert read("run_trial", **SESSION, changes=[], hypothesis=[]) == SESSION
    assert read("wait_trial", **SESSION, trial=[]) == SESSION
    listed = read("run_trial", **SESSION, changes_list={"knob": "lr", "value": "0.001"})
    assert listed["changes_list"] == [{"knob": "lr", "value": "0.001"}]
