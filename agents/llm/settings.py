"""Which model, at which address, in which wire format; and what follows from the address."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from ...data.errors import LanguageModelError

WireName = Literal["openai", "anthropic"]
ToolMode = Literal["auto", "native", "text"]

OPENAI_URL = "https://api.openai.com/v1"
ANTHROPIC_URL = "https://api.anthropic.com"
LOCAL = "local"
"""The provider of a model that is served on this machine; the price table has a row for it."""


@dataclass(frozen=True)
class Provider:
    """A provider, known by the host of its address, and the environment variable of its key."""

    name: str
    key_variable: str
    wire: WireName = "openai"


HOSTS = {
    "api.openai.com": Provider("openai", "OPENAI_API_KEY"),
    "api.anthropic.com": Provider("anthropic", "ANTHROPIC_API_KEY", "anthropic"),
    "api.deepseek.com": Provider("deepseek", "DEEPSEEK_API_KEY"),
    "api.moonshot.ai": Provider("moonshot", "MOONSHOT_API_KEY"),
    "api.moonshot.cn": Provider("moonshot", "MOONSHOT_API_KEY"),
    "api.mistral.ai": Provider("mistral", "MISTRAL_API_KEY"),
    "api.groq.com": Provider("groq", "GROQ_API_KEY"),
    "openrouter.ai": Provider("openrouter", "OPENROUTER_API_KEY"),
}


@dataclass(frozen=True)
class ModelSettings:
    """How to reach a model.

    `base_url` "": Anthropic for claude-…, else OpenAI. `wire` None: Anthropic's for its host and for addresses that end
    in /anthropic, else OpenAI's. `tools`: auto tries native tool calls and learns if the model lacks them. `prices`:
    files whose rows go before those of the package, the last file first. `max_usd`: cap per session.
    """

    model: str
    base_url: str = ""
    wire: WireName | None = None
    key_file: Path | None = None
    max_usd: float | None = None
    prices: tuple[Path, ...] = ()
    tools: ToolMode = "auto"
    timeout_seconds: float = 300.0
    max_attempts: int = 6
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not self.model:
            raise LanguageModelError("the name of the model is empty; give one with --model")
        if self.max_usd is not None and not self.max_usd > 0:
            raise LanguageModelError(f"max_usd={self.max_usd} is not positive; give a cap in US dollars, e.g. 2.5")
        parts = _split(self.address)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise LanguageModelError(
                f"base_url={self.base_url!r} is no http address; write e.g. http://localhost:11434/v1"
            )
        if parts.username or parts.password or parts.query:
            raise LanguageModelError(
                "base_url contains a user, password or query; give keys by environment variable or --key-file only"
            )

    @property
    def address(self) -> str:
        """The base URL without a slash at its end."""
        default = ANTHROPIC_URL if self.model.startswith("claude") else OPENAI_URL
        return (self.base_url or default).rstrip("/")

    @property
    def host(self) -> str:
        """The host of the address in lower case."""
        return urlsplit(self.address).hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether the model is served on this machine: localhost or a loopback address."""
        return self.host == "localhost" or self.host.endswith(".localhost") or _is(self.host, "is_loopback")

    @property
    def is_encrypted(self) -> bool:
        """Whether a key may be sent: over TLS, or within this machine or a private network."""
        private = self.is_local or "." not in self.host or _is(self.host, "is_private")
        return private or self.address.startswith("https")

    @property
    def provider(self) -> str:
        """The name by which the price table knows the provider: a known one, `local`, or the host."""
        if self.is_local:
            return LOCAL
        return HOSTS[self.host].name if self.host in HOSTS else self.host

    @property
    def wire_format(self) -> WireName:
        """The wire format, given or guessed from the address."""
        if self.wire is not None:
            return self.wire
        if self.host in HOSTS and not self.address.endswith("/anthropic"):
            return HOSTS[self.host].wire
        return "anthropic" if self.address.endswith("/anthropic") else "openai"


def price_files(home: Path, given: Path | None = None) -> tuple[Path, ...]:
    """The user's price files: HOME/prices.toml if it exists, then the file given with --prices."""
    own = home / "prices.toml"
    return (*((own,) if own.exists() else ()), *((given,) if given else ()))


def _split(address: str) -> SplitResult | None:
    """The parts of an address; None if its host or port cannot be one."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - read to be checked
    except ValueError:
        return None
    return parts


def _is(host: str, what: str) -> bool:
    """Whether a host is an IP address with this property of `ipaddress`."""
    try:
        return bool(getattr(ipaddress.ip_address(host), what))
    except ValueError:
        return False
