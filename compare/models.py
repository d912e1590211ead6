"""The language model of an arm: what a task says about it, and the client that a session asks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ..agents.llm.client import HttpModel
from ..agents.llm.keys import find_key
from ..agents.llm.messages import LanguageModel
from ..agents.llm.prices import PriceTable
from ..agents.llm.settings import ModelSettings, WireName, price_files
from ..agents.registry import Driver
from ..memory.store import Memory

LEDGER_SECONDS = 60.0  # the server of the session writes to memory.db, too, and a paid reply must not be lost


class ModelChoice(BaseModel):
    """How to reach a language model. `key_file` and `prices` are paths; a key itself is never part of a task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    base_url: str = ""
    wire: WireName | None = None
    driver: Driver = "stateless"
    max_usd: float | None = None
    max_steps: int | None = None
    key_file: str = ""
    prices: str = ""

    def settings(self, home: Path) -> ModelSettings:
        """The settings of the client; `home` may hold a file of prices."""
        return ModelSettings(
            self.name,
            self.base_url,
            wire=self.wire,
            key_file=Path(self.key_file) if self.key_file else None,
            max_usd=self.max_usd,
            prices=price_files(home, Path(self.prices) if self.prices else None),
        )

    def check(self, home: Path) -> None:
        """Raise the errors that show before a session is opened: of the address, the key and the prices."""
        settings = self.settings(home)
        find_key(settings)
        PriceTable.load(settings.prices)


@contextmanager
def asked(choice: ModelChoice, home: Path) -> Iterator[LanguageModel]:
    """The client of a session, whose calls are entered in the ledger of its home."""
    with Memory(home / "memory.db", busy_seconds=LEDGER_SECONDS) as memory:
        yield HttpModel(choice.settings(home), memory.ledger)
