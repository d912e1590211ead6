"""Changes as text and as lists: every knob of both backbones round-trips, and nothing is guessed."""

import json

import pytest

from virtualmle.data.errors import ConfigError
from virtualmle.models.config import KNOBS
from virtualmle.models.knobs.declaration import BACKBONES, DeclaredKnob, Value
from virtualmle.sandbox.action_space import ActionSpace
from virtualmle.sandbox.changes import KnobValue, merged_changes, merged_settings, read_value
from virtualmle.sandbox.protocol import load_protocol


def values_of(knob: DeclaredKnob, default: Value) -> list[Value]:
    """Values that a knob can take: its ends, its default, and all of its choices."""
    if knob.type == "bool":
        return [True, False]
    if knob.type == "trials":
        return ["t003+t004", ""]
    ends = [end for end in (knob.low, knob.high) if end is not None]
    return [default, *knob.choices, *ends]


CASES = [
    pytest.param(backbone, name, value, id=f"{backbone}-{name}-{value}")
    for backbone in BACKBONES
    for name, knob in KNOBS.items()
    if backbone in knob.defaults
    for value in values_of(knob, knob.defaults[backbone])
]


@pytest.fixture(scope="module")
def space() -> ActionSpace:
    return load_protocol().space


@pytest.mark.parametrize(("backbone", "name", "value"), CASES)
def test_a_value_as_text_is_the_value_itself(space: ActionSpace, backbone: str, name: str, value: Value) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    read = read_value(name, f" {text} ")
    assert type(read) is type(value) or KNOBS[name].type in ("trials", "float"), read
    knob = next((knob for knob in space.knobs(backbone) if knob.name == name), None)
    if knob is not None:
        assert knob.check(read) == knob.check(value)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        pytest.param("epochs", 5.0, 5, id="a client with one type of number"),
        pytest.param("epochs", "5.0", 5, id="the same as text"),
        pytest.param("epochs", 5.5, 5.5, id="a fraction is not an integer"),
        pytest.param("lr", "1e-3", 0.001, id="an exponent"),
        pytest.param("lr", "nan", "nan", id="no number"),
        pytest.param("lr", "0.001 or so", "0.001 or so", id="a number and more"),
        pytest.param("lr", "1_0", "1_0", id="Python's own spelling"),
        pytest.param("lr", "9" * 5000, "9" * 5000, id="thousands of digits"),
        pytest.param("causal", "TRUE", True, id="a boolean in capitals"),
        pytest.param("causal", "yes", "yes", id="another word than true"),
        pytest.param("position", "Both", "both", id="a choice in another case"),
        pytest.param("ensemble", '["t004", "a-1/t010"]', ["t004", "a-1/t010"], id="trials as a JSON list"),
        pytest.param("ensemble", "t004, t010", ["t004", "t010"], id="trials with commas"),
        pytest.param("ensemble", "none", [], id="no trials"),
        pytest.param("no_such_knob", "1", "1", id="an unknown knob"),
    ],
)
def test_a_value_is_read_by_the_type_of_its_knob(name: str, given: object, expected: object) -> None:
    read = read_value(name, given)
    assert read == expected and type(read) is type(expected)


def test_both_forms_of_changes_mean_the_same() -> None:
    plain = {"lr": 0.001, "causal": False, "epochs": 3.0}
    as_list = [KnobValue(knob=name, value=json.dumps(value)) for name, value in plain.items()]
    expected = {"lr": 0.001, "causal": False, "epochs": 3}
    assert merged_changes(plain, None) == merged_changes({}, as_list) == merged_changes(plain, as_list) == expected
    assert merged_changes(None, None) == merged_changes({}, []) == {}


def test_forms_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="changes and changes_list differ in lr; give one of the two"):
        merged_changes({"lr": 0.001}, [KnobValue(knob="lr", value="0.002")])
    with pytest.raises(ConfigError, match="changes_list gives 'lr' two values"):
        merged_changes(None, [KnobValue(knob="lr", value="0.001"), KnobValue(knob="lr", value="0.002")])
    with pytest.raises(ConfigError, match="settings and settings_list differ"):
        merged_settings([{"transition_weight": 4}], ["transition_weight=8"])


def test_settings_as_texts() -> None:
    expected = [{"transition_weight": 4, "fusion": "rerank"}, {"transition_weight": 8}]
    texts = ["transition_weight=4, fusion=rerank", " transition_weight : 8.0 "]
    for settings in (None, [{}, {}], expected):
        assert merged_settings(settings, texts) == expected
    assert merged_settings([{}], None) == [{}]
    with pytest.raises(ConfigError, match=r"settings_list\[2\]='rerank' is no setting; write knob=value"):
        merged_settings(None, ["fusion=rerank", "rerank"])
