"""The money of a model's calls: prices, reservations, settlements, and warnings when a cap comes near."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter

from ...data.errors import LanguageModelError
from .ledger import CallLedger
from .messages import Reply, Request, Usage
from .prices import PriceTable
from .settings import ModelSettings
from .tokens import reserved_input

_REPLY = TypeAdapter(Reply)
WARN_AT = (0.5, 0.8)


def ignore(message: str) -> None:
    """Drop a notice."""


@dataclass
class Accounts:
    """The ledger as one model uses it. Raises LanguageModelError at once for a cap on a model without a known price."""

    settings: ModelSettings
    ledger: CallLedger
    notify: Callable[[str], None] = ignore
    prices: PriceTable = field(init=False)
    _seen: set[str] = field(default_factory=set, init=False)
    _warned: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.prices = PriceTable.load(self.settings.prices)
        if self.settings.max_usd is not None:
            self._require_price()

    def paid_reply(self, request: Request) -> Reply | None:
        """The reply that the ledger holds for the same session, step and request; None for a request without a step."""
        if not request.step:
            return None
        stored = self.ledger.last_reply(request.session, request.step, self._fingerprint(request))
        return _REPLY.validate_json(stored) if stored is not None else None

    def recall(self, session: str, step: str) -> Reply | None:
        """The reply that the ledger holds for this step, whatever the request was."""
        stored = self.ledger.last_reply(session, step)
        return _REPLY.validate_json(stored) if stored is not None else None

    def reserve(self, request: Request, sent: Request) -> int:
        """Reserve the worst case of a request in the form in which it is sent; raises CostCapError beyond the cap."""
        if request.session not in self._seen:  # the first call of this process for the session
            self.ledger.reclaim(request.session)
            self._seen.add(request.session)
        cap = self._cap(request.session)
        if cap is not None:
            self._require_price()
        return self.ledger.reserve(
            request.session,
            request.step,
            self._fingerprint(request),
            provider=self.settings.provider,
            model=self.settings.model,
            usd=self._worst_cost(sent),
            max_usd=cap,
        )

    def settle(self, call: int, session: str, reply: Reply) -> None:
        """Store a reply with its tokens and price, and warn if the cap comes near."""
        tokens = asdict(reply.usage)
        estimated = bool(tokens.pop("estimated"))
        usd, stored = self._cost(reply.usage), _REPLY.dump_python(reply, mode="json")
        self.ledger.settle(call, tokens, usd=usd, reply=stored, estimated=estimated)
        self._warn(session)

    def _warn(self, session: str) -> None:
        spent, cap = self.ledger.spent(session), self._cap(session)
        if spent is None or cap is None:
            return
        reached = max((share for share in WARN_AT if spent >= share * cap), default=0.0)
        if reached > self._warned.get(session, 0.0):
            self._warned[session] = reached
            self.notify(f"{spent / cap:.0%} of the cap of {cap:g} US dollars for the language model is used")

    def _cap(self, session: str) -> float | None:
        caps = [cap for cap in (self.settings.max_usd, self.ledger.cap(session)) if cap is not None]
        return min(caps, default=None)

    def _worst_cost(self, request: Request) -> float | None:
        tokens = reserved_input(request)
        price = self.prices.find(self.settings.provider, self.settings.model, tokens)
        return price.worst_cost(tokens, request.max_output_tokens) if price else None

    def _cost(self, usage: Usage) -> float | None:
        prompt = usage.input + usage.cached + usage.cache_write
        price = self.prices.find(self.settings.provider, self.settings.model, prompt)
        return price.cost(usage) if price else None

    def _require_price(self) -> None:
        provider, model = self.settings.provider, self.settings.model
        if self.prices.find(provider, model) is None:
            raise LanguageModelError(
                f"there is no price for model={model!r} of provider={provider!r}, so a cap cannot be kept; add a "
                "[[price]] row to HOME/prices.toml or to a file given with --prices (docs/language-models.md), or "
                "leave the cap out"
            )

    def _fingerprint(self, request: Request) -> str:
        content = {name: value for name, value in asdict(request).items() if name not in ("session", "step")}
        text = json.dumps([self.settings.model, content], sort_keys=True, default=dict)
        return hashlib.sha256(text.encode()).hexdigest()
