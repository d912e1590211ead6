"""Arms of a comparison: an agent with its seeding, its language model and its ablations, as one word.

    AGENT[@MODEL][:SEEDING][+without-reflection][+without-memory][+carried]

Examples: `engineer`, `tpe:moves`, `engineer+without-memory`, `llm@qwen3:8b`. After `@` comes the name of a language
model, which may contain colons, so an arm with a model has no seeding of its own. An arm starts with an empty memory,
unless it is `+carried` or its seeding is `memory`: then it starts with the cognition that `--memory-from` names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..agents.registry import AGENTS, ASKING
from ..agents.seeding import SEEDINGS, Seeding
from ..data.errors import ConfigError

MODIFIERS = ("without-reflection", "without-memory", "carried")


@dataclass(frozen=True)
class Arm:
    """One contestant. `name` is the word that it was parsed from."""

    name: str
    agent: str
    seeding: Seeding = "default"
    model: str = ""
    with_reflection: bool = True
    with_memory: bool = True
    carried: bool = False

    @property
    def slug(self) -> str:
        """The name with only characters that every file system accepts."""
        return re.sub(r"[^A-Za-z0-9.-]+", "_", self.name)


def parse_arm(word: str) -> Arm:
    """The arm that a word names; raises ConfigError for an unknown agent, seeding or modifier."""
    stem, *modifiers = word.strip().split("+")
    unknown = [modifier for modifier in modifiers if modifier not in MODIFIERS]
    if unknown:
        raise ConfigError(f"arm {word!r} has the modifier {unknown[0]!r}; choose among +{', +'.join(MODIFIERS)}")
    agent, _, model = stem.partition("@")
    seeding = ""
    if not model:
        agent, _, seeding = agent.partition(":")
    if agent not in AGENTS:
        raise ConfigError(f"arm {word!r} names the agent {agent!r}; choose one of {', '.join(AGENTS)}")
    if model and agent not in ASKING:
        raise ConfigError(f"arm {word!r} names a model, but {agent} asks none; only {', '.join(sorted(ASKING))} do")
    start = _seeding(word, seeding)
    without_memory = "without-memory" in modifiers
    carried = "carried" in modifiers or start == "memory"
    if without_memory and carried:
        raise ConfigError(f"arm {word!r} both starts with a memory and has none; leave one of them out")
    return Arm(
        word.strip(), agent, start, model, "without-reflection" not in modifiers, not without_memory, carried
    )


def _seeding(word: str, seeding: str) -> Seeding:
    for known in SEEDINGS:
        if seeding == known:
            return known
    if seeding:
        raise ConfigError(f"arm {word!r} has the seeding {seeding!r}; choose one of {', '.join(SEEDINGS)}")
    return "default"


def parse_arms(words: Sequence[str]) -> tuple[Arm, ...]:
    """The arms in the given order; raises ConfigError for an arm that is named twice, or for none."""
    arms = tuple(parse_arm(word) for word in words if word.strip())
    twice = [arm.name for number, arm in enumerate(arms) if arm.name in {other.name for other in arms[:number]}]
    if twice:
        raise ConfigError(f"arm {twice[0]!r} is named twice; name each arm once")
    if not arms:
        raise ConfigError("there is no arm to compare; name agents, e.g. --agents engineer,random")
    return arms
