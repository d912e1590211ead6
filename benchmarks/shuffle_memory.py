"""A placebo for memory: knowledge of the same form and strength, but about the wrong knobs.

    virtualmle memory export true.json
    python benchmarks/shuffle_memory.py true.json shuffled.json --seed 1
    virtualmle memory import shuffled.json --home another-home

Knowledge about knob a becomes knowledge about knob p(a). The permutation p is drawn from the seed. It is a single cycle
among the knobs that the same backbones have, so that no knob keeps its own knowledge and none moves to a backbone that
lacks it. A number keeps its relative position in the range, a choice its relative position in the list. Counts, effect
sizes, similarities and sources are unchanged. Texts would name the true knobs: the statement of a rule is replaced by
its shuffled condition, a rule without a condition is left out, and summaries keep neither text nor figures. A session
that does as well with the shuffled memory as with the true one has gained nothing from the content of its memory.
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virtualmle.data.atomic import write_bytes
from virtualmle.data.errors import ConfigError
from virtualmle.memory.portable import Cognition, Configuration, Effect, Rule, read_cognition
from virtualmle.models.config import fingerprint
from virtualmle.sandbox.action_space import ActionSpace, Knob
from virtualmle.sandbox.conditions import Condition, parse_condition
from virtualmle.sandbox.proposals import value_at
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.sandbox.surrogate import position

LEFT_OUT = "left out, because it would name the true knobs"


def shuffled(cognition: Cognition, space: ActionSpace, seed: int) -> Cognition:
    """`cognition` with its knobs permuted within `space`; equal arguments give equal results."""
    knobs = Permutation(space, seed)
    return cognition.model_copy(
        update={
            "rules": [rule for old in cognition.rules if (rule := knobs.rule(old))],
            "summaries": [old.model_copy(update={"text": LEFT_OUT, "computed": {}}) for old in cognition.summaries],
            "effects": added([effect for old in cognition.effects if (effect := knobs.effect(old))]),
            "configurations": [knobs.configuration(old) for old in cognition.configurations],
        }
    )


def added(effects: Sequence[Effect]) -> list[Effect]:
    """`effects` with those of one session, knob and value added up, because two values may become the same choice."""
    found: dict[tuple[str, str, str], Effect] = {}
    for effect in effects:
        key = (effect.session, effect.knob, repr(effect.value))
        earlier = [found[key]] if key in found else []
        sums = {name: sum(getattr(one, name) for one in [*earlier, effect]) for name in ("n", "weight", "weighted")}
        found[key] = effect.model_copy(update=sums)
    return list(found.values())


class Permutation:
    """A permutation of the knobs of an action space, in one cycle per set of backbones."""

    def __init__(self, space: ActionSpace, seed: int) -> None:
        self._space = space
        self._knobs = {knob.name: knob for knob in space.entries}
        self._target_of: dict[str, Knob] = {}
        groups: dict[tuple[str, ...], list[Knob]] = defaultdict(list)
        for knob in space.entries:
            if knob.type != "trials":  # such values name trials: memory knows nothing about them
                groups[tuple(sorted(knob.defaults))].append(knob)
        drawn = random.Random(f"placebo:{seed}")
        for order in groups.values():
            drawn.shuffle(order)
            if len(order) > 1:  # a knob that is alone has no other to move to: what is known about it is left out
                self._target_of |= {a.name: b for a, b in zip(order, [*order[1:], *order[:1]], strict=True)}

    def rule(self, rule: Rule) -> Rule | None:
        """The rule about another knob; None if it has no condition on a knob that the space offers."""
        condition = self.condition(rule.condition or "", rule.backbone)
        if condition is None:
            return None
        return rule.model_copy(update={"condition": condition, "statement": f"{rule.kind} {condition}"})

    def condition(self, text: str, backbone: str | None) -> str | None:
        """The condition on the mapped knob; None for text that is no condition on a knob and values of the space."""
        try:
            condition = parse_condition(text)
        except ConfigError:
            return None
        if not all(self._offers(condition.knob, value) for value in condition.values):
            return None
        target = self._target_of[condition.knob]
        default = target.defaults[backbone or next(iter(target.defaults))]
        values = tuple(self._mapped(condition.knob, value, default) for value in condition.values)
        return str(Condition(target.name, _operator(condition, target, values[0], default), values))

    def effect(self, effect: Effect) -> Effect | None:
        """The effect of the mapped knob and value; None for a knob or a value that the space does not offer."""
        if not self._offers(effect.knob, effect.value):
            return None
        target = self._target_of[effect.knob]
        value = self._mapped(effect.knob, effect.value, target.defaults[effect.backbone])
        return effect.model_copy(update={"knob": target.name, "value": value})

    def configuration(self, entry: Configuration) -> Configuration:
        """The configuration whose differences from the default are mapped to other knobs."""
        default = self._space.default(entry.backbone).model_dump()
        changed = {knob: value for knob, value in entry.config.items() if value != default.get(knob)}
        config = {**default, **self.settings(changed, entry.backbone)}
        return entry.model_copy(update={"config": config, "config_hash": fingerprint(config)})

    def settings(self, settings: Mapping[str, Any], backbone: str) -> dict[str, Any]:
        """Settings that differ from the default, mapped to other knobs; without those that the space does not offer."""
        found = {}
        for name, value in settings.items():
            if self._offers(name, value):
                target = self._target_of[name]
                found[target.name] = self._mapped(name, value, target.defaults[backbone])
        return found

    def _offers(self, name: str, value: Any) -> bool:
        try:
            return name in self._target_of and self._knobs[name].check(value) is not None
        except ConfigError:
            return False

    def _mapped(self, name: str, value: Any, default: Any) -> Any:
        """The value of the mapped knob, whose default is `default`, at the relative position of `value`."""
        source, target = self._knobs[name], self._target_of[name]
        fraction = min(max(_relative_position(source, value), 0.0), 1.0)
        if target.low is not None:
            return value_at(target, fraction)
        choices = target.choices or (False, True)
        mapped: Any = choices[min(int(fraction * len(choices)), len(choices) - 1)]
        return choices[(choices.index(mapped) + 1) % len(choices)] if mapped == default else mapped  # stays a change


def _operator(condition: Condition, target: Knob, value: Any, default: Any) -> str:
    if condition.operator == "in":
        return "in"
    if target.low is None:
        return "=="
    if condition.operator in ("<", "<=", ">", ">="):
        return condition.operator
    return ">=" if value > default else "<="


def _relative_position(knob: Knob, value: Any) -> float:
    """Relative position of a value in the range or the choices of its knob, in [0, 1]."""
    if knob.low is not None:
        return position(knob, value)
    choices = knob.choices or (False, True)
    return (choices.index(value) + 0.5) / len(choices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a file written by `virtualmle memory export`")
    parser.add_argument("output", type=Path, help="the file to write; an existing file is replaced")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sandbox", type=Path, help="the SANDBOX.md of the sessions that will read the memory")
    arguments = parser.parse_args()
    result = shuffled(read_cognition(arguments.file), load_protocol(arguments.sandbox).space, arguments.seed)
    write_bytes(arguments.output, (result.model_dump_json(indent=1) + "\n").encode())
    print(f"{arguments.output}: {len(result.rules)} rules, {len(result.effects)} effects, "
          f"{len(result.configurations)} configurations")  # fmt: skip


if __name__ == "__main__":
    main()
