"""The changes that an agent may make, and the error messages for the others."""

import json
import math

import pytest

from virtualmle.data.errors import ConfigError
from virtualmle.models.config import KNOBS, TrialConfig, fingerprint, make_config, train_hash
from virtualmle.models.knobs.declaration import DIMENSIONS
from virtualmle.models.knobs.trial_names import names_in
from virtualmle.sandbox.action_space import ActionSpace, effective, inert_changes
from virtualmle.sandbox.protocol import load_protocol


@pytest.fixture
def space() -> ActionSpace:
    return load_protocol().space


def without(space: ActionSpace, knob: str) -> ActionSpace:
    return ActionSpace(entries=tuple(entry for entry in space.entries if entry.name != knob))


def test_changes_are_applied_over_the_base(space: ActionSpace) -> None:
    base = make_config("hstu", lr=1e-3)
    config = space.resolve(base, {"hidden_dim": 64, "scores": "dot", "tie_embeddings": False})
    assert config == make_config("hstu", lr=1e-3, hidden_dim=64, scores="dot", tie_embeddings=False)


def test_no_changes_give_the_base(space: ActionSpace) -> None:
    assert space.resolve(make_config("sasrec"), {}) == make_config("sasrec")


def test_an_integer_for_a_float_knob_gives_the_same_configuration_as_the_float(space: ActionSpace) -> None:
    base = make_config("sasrec")
    from_int, from_float = space.resolve(base, {"temperature": 1}), space.resolve(base, {"temperature": 1.0})
    assert fingerprint(from_int.model_dump()) == fingerprint(from_float.model_dump())
    negative_zero = space.resolve(base, {"dropout": -0.0})
    assert fingerprint(negative_zero.model_dump()) == fingerprint(make_config("sasrec", dropout=0.0).model_dump())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"hidden_dim": 64.0}, "hidden_dim=64.0 has a decimal point", id="float for int"),
        pytest.param({"num_heads": 0.001}, "from 1 to 8, e.g. 1$", id="example in the range"),
        pytest.param({"num_blocks": True}, "num_blocks=True is not a number", id="bool for int"),
        pytest.param({"lr": True}, "lr=True is not a number", id="bool for float"),
        pytest.param({"lr": "0.001"}, "lr='0.001' is not a number; give a number from", id="string for number"),
        pytest.param({"lr": math.nan}, "lr=nan is not finite", id="NaN"),
        pytest.param({"lr": math.inf}, "lr=inf is not finite", id="infinity"),
        pytest.param({"epochs": math.nan}, "epochs=nan is not finite", id="NaN for int"),
        pytest.param({"epochs": 10**400}, "epochs=1000.* is out of range", id="huge integer"),
        pytest.param({"lr": 10**400}, "lr=1000.* is out of range", id="huge integer for float"),
        pytest.param({"hidden_dim": 512}, "hidden_dim=512 is out of range.* from 16 to 256", id="above the range"),
        pytest.param({"lr": 0}, "lr=0 is out of range", id="below the range"),
        pytest.param({"causal": 1}, "causal=1 is not a boolean", id="int for bool"),
        pytest.param({"causal": "false"}, "not a boolean; give true or false", id="string for bool"),
        pytest.param({"ffn": "tanh"}, "ffn='tanh' is not one of its choices", id="unknown choice"),
        pytest.param({"ffn": ["relu"]}, "is not one of its choices", id="list for choice"),
        pytest.param({"lr": None}, "lr=None is not a number", id="null"),
        pytest.param({"lr": {}}, "is not a number", id="object"),
        pytest.param({"seed": 1}, "seeds belong to the server: one per configuration and repetition", id="seed"),
        pytest.param({"backbone": "hstu"}, "open another session", id="backbone"),
        pytest.param({"speed": 1e-3}, "'speed' is not a knob; the knobs are attention_dropout, aug", id="unknown knob"),
        pytest.param({"learning_rate": 1e-3}, r"'learning_rate' is not a knob; did you mean lr\?$", id="other name"),
        pytest.param({"atention_dim": 64}, r"did you mean attention_dropout", id="of the other backbone"),
        pytest.param({"hiden_dim": 64}, "did you mean hidden_dim", id="misspelt knob"),
        pytest.param({"linear_dim": 32}, "no meaning on sasrec: it belongs to hstu", id="knob of the other backbone"),
        pytest.param({"num_heads": 3}, "hidden_dim=128 is not divisible by num_heads=3", id="indivisible heads"),
        pytest.param({"causal": False}, "causal=false lets a position see its own target", id="leaking attention"),
    ],
)
def test_an_invalid_change_is_refused_with_the_reason(
    space: ActionSpace, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        space.resolve(make_config("sasrec"), changes)


def test_many_unknown_knobs_are_shortened_to_ten_and_all_knobs_listed_once(space: ActionSpace) -> None:
    changes = {f"{'x' * 500}{number}": 1 for number in range(300)} | {"lr": 9}
    with pytest.raises(ConfigError, match="and 290 more are not knobs; .*; lr=9") as refusal:
        space.resolve(make_config("sasrec"), changes)
    assert str(refusal.value).count("transition_window") == 1 and len(str(refusal.value)) < 2000


@pytest.mark.parametrize(
    ("name", "knob"),
    [
        ("learning_rate", "lr"),
        ("learning-rate", "lr"),
        ("learningRate", "lr"),
        ("batchsize", "batch_size"),
        ("emb_dim", "hidden_dim"),
        ("d_model", "hidden_dim"),
        ("n_layers", "num_blocks"),
        ("n_heads", "num_heads"),
        ("max_seq_len", "max_len"),
        ("num_neg", "num_negatives"),
        ("wd", "weight_decay"),
        ("tau", "temperature"),
    ],
)
def test_a_name_from_another_library_is_answered_with_the_knob(space: ActionSpace, name: str, knob: str) -> None:
    with pytest.raises(ConfigError, match=rf"is not a knob; did you mean {knob}\?$"):
        space.resolve(make_config("sasrec"), {name: 1})
    with pytest.raises(ConfigError, match=rf"is not a knob; did you mean {knob}\?$"):
        make_config("sasrec", **{name: 1})


def test_several_unknown_names_with_suggestions_are_answered_without_the_list_of_knobs(space: ActionSpace) -> None:
    with pytest.raises(ConfigError) as refusal:
        space.resolve(make_config("sasrec"), {"learning_rate": 1e-3, "n_layers": 2})
    assert str(refusal.value) == (
        "'learning_rate' (did you mean lr?), 'n_layers' (did you mean num_blocks?) are not knobs"
    )


def test_an_alias_belongs_to_one_knob_and_is_not_the_name_of_a_knob() -> None:
    aliases = [alias for knob in KNOBS.values() for alias in knob.about.aliases]
    assert len(aliases) == len(set(aliases)) and not set(aliases) & set(KNOBS)


def test_all_invalid_changes_are_reported_together(space: ActionSpace) -> None:
    with pytest.raises(ConfigError, match="lr=9 .*; dropout=-1 .*; 'speed' is not a knob"):
        space.resolve(make_config("sasrec"), {"lr": 9, "dropout": -1, "speed": 1})


def test_a_knob_missing_from_sandbox_md_is_fixed_at_its_default(space: ActionSpace) -> None:
    reduced = without(space, "dropout")
    assert reduced.default("hstu") == make_config("hstu")
    with pytest.raises(ConfigError, match="dropout is fixed at 0.5 for hstu: SANDBOX.md does not offer it"):
        reduced.resolve(make_config("hstu"), {"dropout": 0.1})


@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_both_ends_of_every_range_are_valid(space: ActionSpace, backbone: str) -> None:
    base = space.default(backbone)
    for knob in space.knobs(backbone):
        values = [knob.low, knob.high] if knob.low is not None else list(knob.choices) or [True]
        values = ["", "t001+t002", "a-1/t001+b.c-2/t001r1+t001+t1000"] if knob.type == "trials" else values
        for value in values:
            assert getattr(space.resolve(base, {knob.name: value}), knob.name) == value


def test_the_description_is_json_with_one_entry_per_knob_of_the_backbone(space: ActionSpace) -> None:
    described = json.loads(json.dumps(space.describe("sasrec"), allow_nan=False))
    keys = {"knob", "type", "low", "high", "scale", "choices", "default", "dimension"}
    assert all(set(entry) == keys for entry in described)
    names = {entry["knob"] for entry in described}
    assert "ffn" in names and "linear_dim" not in names
    assert next(e for e in described if e["knob"] == "causal")["choices"] == [False, True]
    assert next(e for e in space.describe("hstu") if e["knob"] == "dropout")["default"] == 0.5


def test_differences_lists_the_knobs_that_deviate_from_the_default(space: ActionSpace) -> None:
    assert space.differences(make_config("hstu")) == {}
    assert space.differences(make_config("hstu", lr=1e-3, dropout=0.2)) == {"lr": 1e-3, "dropout": 0.2}


def test_every_knob_has_a_dimension_and_other_names_have_none(space: ActionSpace) -> None:
    assert {space.dimension(knob.name) for knob in space.entries} == set(DIMENSIONS)
    assert space.dimension("weight_decay") == "optimisation"
    with pytest.raises(ConfigError, match="seeds belong to the server"):
        space.dimension("seed")


def test_an_unknown_backbone_is_refused(space: ActionSpace) -> None:
    with pytest.raises(ConfigError, match="'gru' is not known"):
        space.default("gru")


@pytest.mark.parametrize(
    ("backbone", "settings", "knob", "value", "enabling"),
    [
        ("sasrec", {}, "readout_k", 5, {"readout": "last_k"}),
        ("sasrec", {"loss": "full_softmax"}, "num_negatives", 9, {"loss": "sampled_softmax"}),
        ("hstu", {}, "optimizer", "adam", {"weight_decay": 0.1}),
        ("sasrec", {}, "score_normalisation", "none", {"popularity_weight": 1.0}),
        ("sasrec", {}, "transition_window", 3, {"transition_weight": 1.0}),
        ("sasrec", {}, "transition_normalisation", "none", {"transition_weight": 1.0}),
        ("sasrec", {}, "cooccurrence_window", 3, {"cooccurrence_weight": 1.0}),
        ("sasrec", {}, "cooccurrence_normalisation", "none", {"cooccurrence_weight": 1.0}),
        ("hstu", {}, "shared_blocks", True, {"num_blocks": 2}),
        ("sasrec", {"loss": "full_softmax"}, "negative_sharing", "position", {"loss": "bce"}),
        ("sasrec", {"loss": "full_softmax"}, "negative_power", 0.5, {"loss": "gbce"}),
        ("hstu", {"loss": "bce"}, "logq_correction", True, {"loss": "sampled_softmax"}),
        ("hstu", {"loss": "bce"}, "gbce_calibration", 0.5, {"loss": "gbce"}),
        ("hstu", {"loss": "gbce"}, "label_smoothing", 0.1, {"loss": "full_softmax"}),
        ("sasrec", {}, "augmentation_share", 0.1, {"augmentation": "crop"}),
        ("sasrec", {"augmentation_share": 0.0, "augmentation": "crop"}, "augmentation_ratio", 0.1,
         {"contrastive_weight": 0.1}),
        ("sasrec", {}, "contrastive_temperature", 0.2, {"contrastive_weight": 0.1}),
        ("sasrec", {}, "fusion", "rerank", {"popularity_weight": 1.0}),
        ("sasrec", {"popularity_weight": 1.0}, "rerank_top", 50, {"fusion": "rerank"}),
        ("sasrec", {}, "popularity_window", 0.5, {"popularity_weight": 1.0}),
        ("sasrec", {"transition_weight": 1.0}, "transition_decay", 0.5, {"transition_window": 2}),
        ("sasrec", {}, "transition_direction", "both", {"transition_weight": 1.0}),
        ("sasrec", {}, "transition_recent", 2, {"transition_weight": 1.0}),
        ("sasrec", {"transition_weight": 1.0}, "transition_recency", 0.5, {"transition_recent": 2}),
        ("sasrec", {}, "transition_neighbours", 9, {"transition_weight": 1.0}),
        ("sasrec", {"cooccurrence_weight": 1.0, "cooccurrence_window": 1}, "cooccurrence_recency", 0.5,
         {"cooccurrence_window": 3}),
        ("sasrec", {}, "cooccurrence_span", 2, {"cooccurrence_weight": 1.0}),
        ("sasrec", {}, "cooccurrence_neighbours", 9, {"cooccurrence_weight": 1.0}),
    ],
)
def test_a_knob_is_inert_until_the_knob_that_enables_it_is_set(
    backbone: str, settings: dict[str, object], knob: str, value: object, enabling: dict[str, object]
) -> None:
    changes = {knob: value}
    plain, changed = make_config(backbone, **settings), make_config(backbone, **settings, **changes)
    assert list(inert_changes(changed, changes)) == [knob]
    assert effective(plain) == effective(changed)
    on = {**settings, **enabling}
    assert inert_changes(make_config(backbone, **on, **changes), changes) == {}
    assert effective(make_config(backbone, **on)) != effective(make_config(backbone, **on, **changes))


def test_knobs_of_the_other_backbone_are_inert() -> None:
    assert set(inert_changes(make_config("sasrec"), {"linear_dim": 8, "attention_dim": 8, "lr": 1})) == {
        "linear_dim",
        "attention_dim",
    }
    assert set(inert_changes(make_config("hstu"), {"ffn": "relu"})) == {"ffn"}


def test_a_resolved_configuration_is_a_trial_config(space: ActionSpace) -> None:
    config = space.resolve(make_config("sasrec"), {"popularity_weight": 3})
    assert TrialConfig(**json.loads(config.model_dump_json())) == config


def test_the_members_of_an_ensemble_have_no_order_and_no_knob_that_needs_training_acts_in_it(
    space: ActionSpace,
) -> None:
    base = space.default("sasrec")
    one = space.resolve(base, {"ensemble": ["t010", "t004"], "lr": 0.002})
    other = space.resolve(base, {"ensemble": ("t004", "t010"), "hidden_dim": 16})
    assert one.ensemble == other.ensemble == "t004+t010" and names_in(one.ensemble) == ("t004", "t010")
    assert effective(one) == effective(other) and train_hash(one) == train_hash(other)
    assert train_hash(one) != train_hash(space.resolve(base, {"ensemble": ["t004", "t011"]}))
    assert space.differences(one) == {"ensemble": "t004+t010"}
    assert "an ensemble trains nothing" in inert_changes(one, {"lr": 0.002})["lr"]
    assert effective(space.resolve(one, {"transition_weight": 2.0})) != effective(one)
    assert space.resolve(one, {"ensemble": []}) == space.resolve(base, {"lr": 0.002})
    assert space.roundings("sasrec", {"ensemble": ["t010", "t004"]}) == ""


def test_the_identity_of_a_trained_model_is_that_of_earlier_versions() -> None:
    assert train_hash(make_config("sasrec", lr=0.002)) == "bbe9889f9c096a0c"


def test_what_a_page_fixes_is_not_a_choice_of_the_session(space: ActionSpace) -> None:
    fixed = {"hidden_dim": {"low": 64, "high": 64}, "loss": {"choices": ("bce",)}}
    entries = tuple(knob.model_copy(update=fixed.get(knob.name, {})) for knob in space.entries)
    config = space.default("sasrec").model_dump() | {"hidden_dim": 64, "loss": "bce", "lr": 0.002}
    chosen = ActionSpace(entries=entries).chosen(config)
    assert chosen.keys() == {knob.name for knob in space.knobs("sasrec")} - fixed.keys() - {"ensemble", "teachers"}
    assert chosen["lr"] == 0.002 and chosen["shared_blocks"] is False
