"""The agents, by the names that `--agent` accepts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..data.errors import ConfigError
from .base import Agent
from .engineer import Engineer
from .llm.messages import LanguageModel
from .random_search import RandomSearch

Seeding = Literal["none", "default", "moves", "memory"]


@dataclass(frozen=True)
class AgentOptions:
    """What an agent is made from. `seeding`: the first trials of a sampler. `model`: the model of a language agent."""

    seed: int = 0
    seeding: Seeding = "default"
    model: LanguageModel | None = None


AGENTS: dict[str, Callable[[AgentOptions], Agent]] = {
    "engineer": lambda options: Engineer(options.seed),
    "random": lambda options: RandomSearch(options.seed),
}


def make_agent(name: str, seed: int = 0, options: AgentOptions | None = None) -> Agent:
    """The agent called `name`; raises ConfigError for an unknown name. `options` replaces `seed` if given."""
    if name not in AGENTS:
        raise ConfigError(f"agent={name!r} is not known; choose one of {', '.join(AGENTS)}")
    return AGENTS[name](options or AgentOptions(seed))
