"""The agents by the names under which a person chooses one."""

from ..data.errors import ConfigError
from .base import Agent
from .engineer import Engineer
from .random_search import RandomSearch

AGENTS: dict[str, type[Agent]] = {"engineer": Engineer, "random": RandomSearch}


def make_agent(name: str, seed: int) -> Agent:
    """The agent of that name; raises ConfigError for a name that is not known."""
    if name not in AGENTS:
        raise ConfigError(f"agent={name!r} is not known; choose one of {', '.join(AGENTS)}")
    return AGENTS[name](seed)
