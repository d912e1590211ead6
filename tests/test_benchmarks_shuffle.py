"""The placebo of an exported memory: knowledge of the same form and strength about the wrong knobs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.quick_home import environment
from virtualmle.data.errors import ConfigError
from virtualmle.memory.portable import Cognition, collect, merge, read_cognition
from virtualmle.memory.records import ConfigurationRecord, EffectRecord, RuleRecord, SessionRecord, SummaryRecord
from virtualmle.memory.store import Memory
from virtualmle.models.config import make_config
from virtualmle.sandbox.conditions import parse_condition
from virtualmle.sandbox.protocol import load_protocol, parse_protocol

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "shuffle_memory.py"
sys.path.insert(0, str(SCRIPT.parent))

from shuffle_memory import Permutation, shuffled  # noqa: E402

SPACE = load_protocol().space
PROFILE = {"users": 1000, "items": 500}
SETTINGS = {"lr": 0.001, "transition_weight": 8.0, "loss": "full_softmax", "causal": False, "max_len": 20}
RULES = [("prefer", "lr >= 0.001"), ("avoid", "hidden_dim > 128"), ("prefer", "loss == full_softmax"),
         ("insight", None), ("prefer", "position in {rotary, none}")]  # fmt: skip


def learnt(path: Path | None = None) -> Memory:
    """A memory with rules, effects and a configuration of one closed session."""
    memory = Memory(path)
    source = {"session": "shop-sasrec-1", "dataset": "shop", "dataset_id": "d1", "backbone": "sasrec"}
    memory.sessions.open(SessionRecord(
        id="shop-sasrec-1", dataset="shop", dataset_id="d1", backbone="sasrec", protocol_hash="p", protocol_text="r",
        max_trials=9, max_train_seconds=60.0, profile=PROFILE,
    ))  # fmt: skip
    for kind, condition in RULES:
        memory.rules.find_or_store(RuleRecord(
            kind=kind, statement=f"{kind} because of {condition}", condition=condition, profile=PROFILE, **source,
        ))  # fmt: skip
    for rule in memory.rules.all():
        memory.rules.count("shop-sasrec-1", {rule.id: (4, 1, ["shop-sasrec-1:t002"])})
    memory.summaries.add(SummaryRecord(text="lr matters", computed={"effects": {"lr": 1}}, profile=PROFILE, **source))
    config = make_config("sasrec", **{**SETTINGS, "supervision": "last"}).model_dump()
    found = ConfigurationRecord(trial="t002", config=config, config_hash="c", ndcg=0.05, gain=0.2, **source)
    values = [("lr", 0.001), ("lr", 0.003), ("transition_weight", 8.0), ("loss", "full_softmax"), ("causal", False)]
    memory.measurements.add([found], [
        EffectRecord(knob=knob, value=value, n=1, weight=1e4, weighted=500.0 + n, **source)
        for n, (knob, value) in enumerate(values)
    ])  # fmt: skip
    return memory


def exported() -> Cognition:
    with learnt() as memory:
        return collect(memory)


@pytest.mark.parametrize("seed", range(5))
def test_no_knob_keeps_its_own_knowledge_and_mapped_values_are_valid(seed: int) -> None:
    permutation = Permutation(SPACE, seed)
    for backbone in ("sasrec", "hstu"):
        knobs = {knob.name: knob for knob in SPACE.knobs(backbone) if knob.type != "trials"}
        targets = set()
        for name, knob in knobs.items():
            value = knob.high if knob.high is not None else (knob.choices or (False, True))[0]
            ((target, mapped),) = permutation.settings({name: value}, backbone).items()
            assert target != name and knobs[target].check(mapped) == mapped
            targets.add(target)
        assert targets == set(knobs), "a permutation of the knobs of this backbone"


def test_the_same_seed_gives_the_same_file_and_another_seed_another() -> None:
    files = [shuffled(exported().model_copy(update={"origin": "0" * 12}), SPACE, seed) for seed in (1, 1, 2)]
    contents = [without_sources(file) for file in files]
    assert contents[0] == contents[1] != contents[2]


def without_sources(file: Cognition) -> str:
    """The rules, effects and configurations of a file, without names and times of sessions."""
    fields = {"rules": {"__all__": {"session", "created_at", "counts"}}, "effects": {"__all__": {"session"}},
              "configurations": {"__all__": {"session"}}, "summaries": True}  # fmt: skip
    return file.model_dump_json(exclude=fields)


def prior(memory: Memory) -> dict[str, Any]:
    """What a new session on a similar dataset gets from this memory."""
    knowledge = memory.knowledge()
    return {
        "rules": knowledge.prior(PROFILE, "d2", "sasrec", kinds=("prefer", "avoid")),
        "effects": knowledge.pooled_effects("sasrec"),
        "portfolio": knowledge.portfolio(PROFILE, "d2", "sasrec"),
        "heuristics": knowledge.avoid_rules("sasrec"),
        "sources": knowledge.sources(),
    }


def test_a_shuffled_import_gives_a_prior_of_the_same_form_and_strength_about_other_knobs() -> None:
    with Memory(None) as true, Memory(None) as placebo:
        merge(true, exported())
        merge(placebo, shuffled(exported(), SPACE, 1))
        expected, found = prior(true), prior(placebo)

    strength = ("kind", "backbone", "dataset", "check", "support", "contradiction", "confidence", "similarity")
    assert [[r[n] for n in strength] for r in found["rules"]] == [[r[n] for n in strength] for r in expected["rules"]]
    knobs = [{str(r["condition"]).split()[0] for r in side["rules"]} for side in (expected, found)]
    assert len(knobs[0]) == len(knobs[1]) == 4
    for true_rule, rule in zip(expected["rules"], found["rules"], strict=True):
        knob = str(true_rule["condition"]).split()[0]
        assert parse_condition(rule["condition"]).knob != knob and knob not in rule["statement"].split()

    def sizes(side: dict[str, Any]) -> list[tuple[Any, ...]]:
        effects = side["effects"].values()
        return sorted((e["n"], e["datasets"], e["mean_relative"], e["se"]) for e in effects)

    assert sizes(found) == sizes(expected) and not set(SETTINGS) <= set(found["effects"])
    assert [(h.support, h.contradiction) for h in found["heuristics"]] == [(4, 1)] and found["sources"] == ["shop"]
    (true_entry,), (entry,) = expected["portfolio"], found["portfolio"]
    assert (entry["ndcg@10"], entry["gain"]) == (true_entry["ndcg@10"], true_entry["gain"])
    default = SPACE.default("sasrec").model_dump()
    changed = [{k for k, v in e["config"].items() if v != default[k]} for e in (true_entry, entry)]
    assert len(changed[1]) == len(changed[0]) and changed[1] != changed[0]


def test_no_text_of_the_shuffled_file_names_a_true_knob() -> None:
    result = shuffled(exported(), SPACE, 0)
    assert len(result.rules) == 4, "an insight without a condition is left out"
    assert all(rule.statement == f"{rule.kind} {rule.condition}" for rule in result.rules)
    assert [(summary.text, summary.computed) for summary in result.summaries] == [
        ("left out, because it would name the true knobs", {})
    ]


def test_what_a_narrowed_space_does_not_offer_is_left_out() -> None:
    narrow = "\n".join(line for line in load_protocol().text.splitlines() if not line.startswith("| `lr`"))
    result = shuffled(exported(), parse_protocol(narrow).space, 0)
    assert len(result.rules) == 3 and len(result.effects) == 3


def test_the_command_shuffles_an_exported_file_and_refuses_another(tmp_path: Path) -> None:
    (tmp_path / "true.json").write_text(exported().model_dump_json())

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", str(SCRIPT), str(tmp_path / name), str(tmp_path / "out.json"), "--seed", "3"]
        return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)

    printed = run("true.json").stdout
    written = read_cognition(tmp_path / "out.json")
    assert printed.endswith(f"4 rules, {len(written.effects)} effects, 1 configurations\n")
    assert without_sources(written) == without_sources(shuffled(read_cognition(tmp_path / "true.json"), SPACE, 3))
    (tmp_path / "other.json").write_text(json.dumps({"rules": []}))
    assert run("other.json").returncode == 1
    with pytest.raises(ConfigError):
        read_cognition(tmp_path / "other.json")
