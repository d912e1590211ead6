"""The agents, by the names that `--agent` accepts."""

from ..data.errors import ConfigError
from .base import Agent
from .engineer import Engineer
from .random_search import RandomSearch

AGENTS: dict[str, type[Agent]] = {"engineer": Engineer, "random": RandomSearch}


def make_agent(name: str, seed: int) -> Agent:
    """The agent called `name`; raises ConfigError for an unknown name."""
    if name not in AGENTS:
        raise ConfigError(f"agent={name!r} is not known; choose one of {', '.join(AGENTS)}")
    return AGENTS[name](seed)
