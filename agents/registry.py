"""The agents, by the names that `--agent` accepts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data.errors import ConfigError
from .base import Agent
from .chat import ChatAgent
from .engineer import Engineer
from .hybrid import Hybrid
from .language import LanguageAgent
from .llm.messages import LanguageModel
from .opro import Opro
from .random_search import RandomSearch

Driver = Literal["stateless", "chat"]
Seeding = Literal["none", "default", "moves", "memory"]


@dataclass(frozen=True)
class AgentOptions:
    """What an agent is made from.

    seeding: the first trials of a sampler. model, driver, max_steps: of an agent that asks a language model; no
    `max_steps`: in proportion to the trials. sessions: the folder in which the chat driver keeps its conversations.
    """

    seed: int = 0
    seeding: Seeding = "default"
    model: LanguageModel | None = None
    driver: Driver = "stateless"
    max_steps: int | None = None
    sessions: Path | None = None


def _model(options: AgentOptions) -> LanguageModel:
    if options.model is None:
        raise ConfigError(
            "this agent asks a language model; name one with --model, e.g. --model qwen3:8b --base-url "
            "http://localhost:11434/v1 for a model of a local Ollama"
        )
    return options.model


def _llm(options: AgentOptions) -> Agent:
    if options.driver == "chat":
        return ChatAgent(_model(options), options.seed, options.max_steps, options.sessions)
    return LanguageAgent(_model(options), options.seed, options.max_steps)


def _opro(options: AgentOptions) -> Agent:
    return Opro(_model(options), RandomSearch(options.seed), max_steps=options.max_steps)


def _hybrid(options: AgentOptions) -> Agent:
    return Hybrid(_model(options), RandomSearch(options.seed), options.max_steps)


AGENTS: dict[str, Callable[[AgentOptions], Agent]] = {
    "engineer": lambda options: Engineer(options.seed),
    "random": lambda options: RandomSearch(options.seed),
    "llm": _llm,
    "opro": _opro,
    "hybrid": _hybrid,
}
ASKING = frozenset({"llm", "opro", "hybrid"})
"""The agents that ask a language model."""


def make_agent(name: str, seed: int = 0, options: AgentOptions | None = None) -> Agent:
    """The agent called `name`; raises ConfigError for an unknown name. `options` replaces `seed` if given."""
    check_agent(name)
    return AGENTS[name](options or AgentOptions(seed))


def check_agent(name: str) -> None:
    """Raise ConfigError unless there is an agent of this name."""
    if name not in AGENTS:
        raise ConfigError(f"agent={name!r} is not known; choose one of {', '.join(AGENTS)}")
