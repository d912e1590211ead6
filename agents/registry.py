"""The agents, by the names that `--agent` accepts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data.errors import ConfigError
from .base import Agent
from .chat import ChatAgent
from .coordinate import Coordinate
from .engineer import Engineer
from .grid import GridSearch
from .hybrid import Hybrid
from .language import LanguageAgent
from .llm.messages import LanguageModel
from .opro import Opro
from .random_search import RandomSearch
from .recipe import RecipeAgent, read_recipes
from .seeding import Seeding

Driver = Literal["stateless", "chat"]


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
    return Opro(_model(options), RandomSearch(options.seed, options.seeding), max_steps=options.max_steps)


def _hybrid(options: AgentOptions) -> Agent:
    return Hybrid(_model(options), _tpe(options), options.max_steps)


def _tpe(options: AgentOptions) -> Agent:
    from .optuna_tpe import TPE  # noqa: PLC0415 - only those who choose it wait for Optuna

    return TPE(options.seed, options.seeding)


def _gp(options: AgentOptions) -> Agent:
    from .optuna_gp import GaussianProcess  # noqa: PLC0415 - as above; it loads torch and scipy

    return GaussianProcess(options.seed, options.seeding)


def _cmaes(options: AgentOptions) -> Agent:
    from .sampler_cmaes import CovarianceAdaptation  # noqa: PLC0415 - as above

    return CovarianceAdaptation(options.seed, options.seeding)


AGENTS: dict[str, Callable[[AgentOptions], Agent]] = {
    "engineer": lambda options: Engineer(options.seed),
    "random": lambda options: RandomSearch(options.seed, options.seeding),
    "grid": lambda options: GridSearch(options.seed, options.seeding),
    "coordinate": lambda options: Coordinate(options.seed, options.seeding),
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "llm": _llm,
    "opro": _opro,
    "hybrid": _hybrid,
}
ASKING = frozenset({"llm", "opro", "hybrid"})
"""The agents that ask a language model."""


RECIPE = "recipe"
"""`recipe:FILE` is the agent that runs the configurations of a file."""


def make_agent(name: str, seed: int = 0, options: AgentOptions | None = None) -> Agent:
    """The agent called `name`; raises ConfigError for an unknown name. `options` replaces `seed` if given."""
    check_agent(name)
    chosen = options or AgentOptions(seed)
    kind, _, file = name.partition(":")
    if kind == RECIPE:
        return RecipeAgent(read_recipes(Path(file)), chosen.seed)
    return AGENTS[name](chosen)


def check_agent(name: str) -> None:
    """Raise ConfigError unless there is an agent of this name."""
    kind, _, file = name.partition(":")
    if kind == RECIPE and file:
        read_recipes(Path(file))
    elif name not in AGENTS:
        raise ConfigError(f"agent={name!r} is not known; choose one of {', '.join(AGENTS)}, or {RECIPE}:FILE")
