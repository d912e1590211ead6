"""The options that name a language model, remembered per session so that a resumed session needs none of them.

The file `model.json` of a session holds addresses and the paths of key files, never a key.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from ..data.wording import counted
from .composed import with_options

if TYPE_CHECKING:
    from ..agents.llm.client import HttpModel
    from ..agents.llm.ledger import CallLedger
    from ..agents.llm.settings import ModelSettings
    from ..memory.ledger import Totals

FILE = "model.json"

_OPTIONS: dict[str, Any] = {
    "model": Annotated[
        str | None, typer.Option("--model", help="The language model of --agent llm, opro or hybrid.", metavar="NAME")
    ],
    "base_url": Annotated[
        str | None,
        typer.Option(
            "--base-url", help="Address of the model, e.g. http://localhost:11434/v1.", show_default="of the provider"
        ),
    ],
    "wire": Annotated[
        str | None, typer.Option("--wire", help="Wire format: openai or anthropic.", show_default="from the address")
    ],
    "driver": Annotated[
        str | None,
        typer.Option(
            "--driver",
            help="stateless: a new bounded prompt in each step; chat: one growing conversation.",
            show_default="stateless",
        ),
    ],
    "max_usd": Annotated[
        float | None, typer.Option("--max-usd", help="Cap in US dollars on the language model.", show_default="none")
    ],
    "max_steps": Annotated[
        int | None,
        typer.Option("--max-steps", min=1, help="Replies of the model in one run.", show_default="8 for each trial"),
    ],
    "key_file": Annotated[
        Path | None, typer.Option("--key-file", help="File with the API key.", show_default="from the environment")
    ],
    "prices": Annotated[
        Path | None, typer.Option("--prices", help="A TOML file of prices.", show_default="HOME/prices.toml")
    ],
}
"""The options of `asks_a_model` by parameter; each is None if it is not given."""


@dataclass(frozen=True)
class ModelOptions:
    """The options as given; None = not given."""

    model: str | None = None
    base_url: str | None = None
    wire: str | None = None
    driver: str | None = None
    max_usd: float | None = None
    max_steps: int | None = None
    key_file: str | None = None
    prices: str | None = None

    @classmethod
    def given(cls, key_file: Path | None, prices: Path | None, **options: Any) -> Self:
        """The options of a command; raises ConfigError for an unknown driver or wire format."""
        from ..data.errors import ConfigError
        from .options import absolute

        for name, choices in (("driver", ("stateless", "chat")), ("wire", ("openai", "anthropic"))):
            if options[name] not in (None, *choices):
                raise ConfigError(f"{name}={options[name]!r} is not known; choose {' or '.join(choices)}")
        paths = {"key_file": key_file, "prices": prices}
        files: dict[str, Any] = {name: str(absolute(path)) for name, path in paths.items() if path}
        return cls(**options, **files)

    def over(self, remembered: "ModelOptions") -> "ModelOptions":
        """These options, and those remembered where these are not given.

        Another model is not asked with the address, wire format and key of the remembered one.
        """
        other = self.model is not None and self.model != remembered.model
        kept = {
            field.name: getattr(remembered, field.name)
            for field in fields(self)
            if not (other and field.name in ("base_url", "wire", "key_file"))
        }
        own = {name: value for name, value in asdict(self).items() if value is not None}
        return ModelOptions(**{**kept, **own})

    def settings(self, home: Path) -> "ModelSettings":
        """The settings of the client; raises ConfigError without a model, LanguageModelError for a wrong address."""
        from ..agents.llm.settings import ModelSettings, price_files
        from ..data.errors import ConfigError

        if not self.model:
            raise ConfigError(
                "--agent llm, opro and hybrid ask a language model; name it with --model, e.g. --model qwen3:8b "
                "--base-url http://localhost:11434/v1 for a local Ollama"
            )
        return ModelSettings(
            self.model,
            self.base_url or "",
            wire=self.wire,  # type: ignore[arg-type]
            key_file=Path(self.key_file) if self.key_file else None,
            max_usd=self.max_usd,
            prices=price_files(home, Path(self.prices) if self.prices else None),
        )

    def client(self, home: Path, ledger: "CallLedger", notify: Callable[[str], None]) -> "HttpModel":
        """The model; raises LanguageModelError if a key is missing or a cap cannot be kept."""
        from ..agents.llm.client import HttpModel

        return HttpModel(self.settings(home), ledger, notify)

    def check(self, home: Path) -> None:
        """Raise the errors that show before a session is opened: of the address, the key and the prices."""
        from ..agents.llm.keys import find_key
        from ..agents.llm.prices import PriceTable

        settings = self.settings(home)
        find_key(settings)
        PriceTable.load(settings.prices)

    def remember(self, home: Path, session: str) -> None:
        """Store the options for `sessions resume`."""
        from ..data.atomic import write_json

        path = _file(home, session)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {name: value for name, value in asdict(self).items() if value is not None}, 0o600)


NO_MODEL = ModelOptions()
"""No option given."""


def asks_a_model(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of a language model in place of its parameter `asked`, a ModelOptions."""
    options = {name: (option, None) for name, option in _OPTIONS.items()}
    return with_options(command, "asked", options, ModelOptions.given)


def remembered(home: Path, session: str) -> ModelOptions:
    """The options that the session was last run with; none if it asked no language model."""
    path = _file(home, session)
    return ModelOptions(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ModelOptions()


def cost_text(rows: "Sequence[Totals]") -> str:
    """`14 calls, 41,233 tokens in (20,480 cached), 2,340 out, 0.1234 US dollars`; of the measured calls."""
    own = [row for row in rows if row.source == "measured"]
    cached = sum(row.cached for row in own)
    told = sum(row.input + row.cached + row.cache_write for row in own)
    said = sum(row.output + row.reasoning for row in own)
    prices = [row.usd for row in own]
    usd = "price unknown" if None in prices else f"{sum(price or 0.0 for price in prices):.4f} US dollars"
    calls = sum(row.calls for row in own)
    return f"{counted(calls, 'call')}, {told:,} tokens in ({cached:,} cached), {said:,} out, {usd}"


def _file(home: Path, session: str) -> Path:
    return home / ".virtualmle" / "sessions" / session / FILE
