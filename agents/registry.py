"""The agents, by the names that `--agent` accepts."""

from collections.abc import Callable
from dataclasses import dataclass

from ..data.errors import ConfigError
from .base import Agent
from .coordinate import Coordinate
from .engineer import Engineer
from .grid import GridSearch
from .llm.messages import LanguageModel
from .random_search import RandomSearch
from .seeding import Seeding


@dataclass(frozen=True)
class AgentOptions:
    """What an agent is made from. `seeding`: the first trials of a sampler. `model`: the model of a language agent."""

    seed: int = 0
    seeding: Seeding = "default"
    model: LanguageModel | None = None


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
}


def make_agent(name: str, seed: int = 0, options: AgentOptions | None = None) -> Agent:
    """The agent called `name`; raises ConfigError for an unknown name. `options` replaces `seed` if given."""
    if name not in AGENTS:
        raise ConfigError(f"agent={name!r} is not known; choose one of {', '.join(AGENTS)}")
    return AGENTS[name](options or AgentOptions(seed))
