"""A language model over HTTP, in the OpenAI-compatible or the Anthropic wire format.

    model = HttpModel(ModelSettings("qwen3:8b", "http://localhost:11434/v1"), ledger=memory.ledger)
    reply = await model.complete(Request((Message("user", "hello"),)))

Covered: retries, parameters that a model does not accept, tool calls in text, the cost ledger. Not covered: streaming,
and what to do with a malformed call (`ToolCall.arguments` is None), a truncated reply or a refusal (`Reply.stop`).
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import anyio
import httpx

from ...data.errors import LanguageModelError
from .accounts import Accounts, ignore
from .anthropic_wire import AnthropicWire
from .keys import REDACTED, find_key, redact
from .ledger import CallLedger
from .messages import LanguageModel, Reply, Request, Usage
from .openai_wire import OpenAIWire
from .quirks import MAX_COMPLETION_TOKENS, MAX_TOKENS, TEXT_TOOLS, quirk_in, with_quirk
from .retries import ProviderError, backoff_seconds, seconds_asked
from .settings import ModelSettings, WireName
from .text_tools import in_text, read_calls
from .tokens import estimate_input, estimate_output
from .wire import Call, UnreadableReply, Wire, valid_unicode

WIRES: dict[WireName, type[Wire]] = {"openai": OpenAIWire, "anthropic": AnthropicWire}
CONNECT_SECONDS = 15.0
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


@dataclass(frozen=True)
class Failed:
    """An attempt that another one may mend. `wait`: seconds that the provider asks for; `learnt`: try again at once."""

    error: LanguageModelError
    wait: float | None = None
    learnt: bool = False


class HttpModel(LanguageModel):
    """A model at an address. `notify` gets short notices: a wait, a cap that comes near.

    Raises LanguageModelError if the key is missing, or if a cap is set for a model without a known price.
    """

    def __init__(
        self,
        settings: ModelSettings,
        ledger: CallLedger,
        notify: Callable[[str], None] = ignore,
        generator: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self._key = find_key(settings)
        self._wire = WIRES[settings.wire_format]()
        self._accounts = Accounts(settings, ledger, notify)
        self._ledger = ledger
        self._notify = notify
        self._generator = generator or random.Random()
        self._learnt = ledger.quirks(settings.address, settings.model)
        self._learnt_now: set[str] = set()

    @property
    def quirks(self) -> frozenset[str]:
        """What the model does not accept: learnt, or following from the settings."""
        quirks = self._learnt
        if self.settings.provider == "openai" and MAX_TOKENS not in quirks:
            quirks |= {MAX_COMPLETION_TOKENS}  # OpenAI has deprecated max_tokens, and its newer models refuse it
        if self.settings.tools == "native":
            return quirks - {TEXT_TOOLS}
        return quirks | {TEXT_TOOLS} if self.settings.tools == "text" else quirks

    async def complete(self, request: Request) -> Reply:
        """The model's answer. Raises CostCapError before a call that could exceed the cap, LanguageModelError if the
        provider refuses the request, or fails as often as `max_attempts` allows."""
        if (paid := self._accounts.paid_reply(request)) is not None:
            return paid
        failures = 0
        async with self._http() as http:
            while True:
                outcome = await self._attempt(http, request)
                if isinstance(outcome, Reply):
                    return outcome
                if outcome.learnt:
                    continue
                failures += 1
                if failures >= self.settings.max_attempts:
                    raise outcome.error
                await self._wait(outcome, failures)

    def recall(self, session: str, step: str) -> Reply | None:
        """The reply that the ledger holds for this step, whatever the request was."""
        return self._accounts.recall(session, step)

    async def _attempt(self, http: httpx.AsyncClient, request: Request) -> Reply | Failed:
        """One HTTP request: its reply, or why another attempt may help; raises the error that none will mend."""
        quirks = self.quirks
        sent = in_text(request) if TEXT_TOOLS in quirks else request
        call = self._accounts.reserve(request, sent)
        try:
            response = await http.post(
                self._wire.url(self.settings.address),
                json=self._wire.body(Call(self.settings.model, sent, quirks)),
                headers=self._wire.headers(self._key),
            )
        except httpx.RequestError as error:
            return self._unanswered(call, error)
        text = response.text
        if response.status_code != httpx.codes.OK:
            return self._refused(call, ProviderError(response.status_code, self._error_text(text), response.headers))
        body = _object_in(text, self._key)
        if isinstance(body.get("error"), dict):  # OpenRouter: an error with status 200
            return self._refused(call, ProviderError(_status_of(body["error"]), self._error_text(text), {}))
        try:
            reply = self._wire.reply(body, sent)
        except UnreadableReply as error:
            self._ledger.lose(call, str(error))
            return Failed(self._error(f"{error}; check --base-url"))
        return self._answered(call, request, sent, reply)

    def _answered(self, call: int, request: Request, sent: Request, reply: Reply) -> Reply:
        """The reply as it is returned and stored: with the calls in its text, and with a usage."""
        if sent is not request:
            reply = read_calls(reply, request)
        if reply.usage.estimated:
            usage = Usage(input=estimate_input(sent), output=estimate_output(reply), estimated=True)
            reply = replace(reply, usage=usage)
        self._accounts.settle(call, request.session, reply)
        return reply

    def _unanswered(self, call: int, error: httpx.RequestError) -> Failed:
        """No reply: not connected, timed out, or the connection was dropped."""
        reason = redact(f"{type(error).__name__}: {error}".rstrip(": "), self._key)
        if isinstance(error, _NEVER_SENT):
            self._ledger.release(call, reason)
            return Failed(self._error(f"no connection ({reason}); check --base-url and that the server runs"))
        self._ledger.lose(call, reason)
        return Failed(self._error(f"no reply ({reason}); try again later: the session can be resumed"))

    def _refused(self, call: int, error: ProviderError) -> Failed:
        """An error of the provider: a quirk to learn, a failure that may pass, or one that does not (raised)."""
        self._ledger.release(call, f"HTTP {error.status}: {error.text}")
        raised = error.as_error(self.settings.model, self.settings.address)
        if self._learn(quirk_in(error.text)):
            return Failed(raised, learnt=True)
        if not error.is_transient:
            raise raised
        return Failed(raised, wait=seconds_asked(error.headers))

    def _learn(self, quirk: str | None) -> bool:
        """Remember a quirk; whether it is new. Each is followed once, so that contradictory errors end."""
        if quirk is None or quirk in self.quirks or quirk in self._learnt_now:
            return False
        if quirk == TEXT_TOOLS and self.settings.tools == "native":
            return False
        self._learnt_now.add(quirk)
        self._learnt = with_quirk(self._learnt, quirk)
        self._ledger.learn(self.settings.address, self.settings.model, self._learnt)
        return True

    async def _wait(self, outcome: Failed, failures: int) -> None:
        """Wait before the next attempt; raises the error if the provider asks for a longer wait than allowed."""
        settings = self.settings
        backoff = backoff_seconds(failures, settings.first_wait_seconds, settings.longest_wait_seconds, self._generator)
        if outcome.wait is not None and outcome.wait > settings.longest_wait_seconds:
            asked = f"the provider asks to wait {outcome.wait:.0f} s; resume the session then"
            raise LanguageModelError(f"{outcome.error}; {asked}")
        seconds = backoff if outcome.wait is None else outcome.wait
        self._notify(f"{outcome.error}: attempt {failures + 1} of {settings.max_attempts} in {seconds:.1f} s")
        await anyio.sleep(seconds)

    def _http(self) -> httpx.AsyncClient:
        timeout = httpx.Timeout(self.settings.timeout_seconds, connect=CONNECT_SECONDS)
        return httpx.AsyncClient(timeout=timeout, trust_env=not self.settings.is_local)  # no proxy to a local server

    def _error_text(self, text: str) -> str:
        """The message of an error body, short and without the key."""
        return " ".join(redact(valid_unicode(_message_in(text)), self._key).split())[:500]

    def _error(self, text: str) -> LanguageModelError:
        return LanguageModelError(f"{self.settings.model} at {self.settings.address}: {text}")


def _message_in(text: str) -> str:
    """The message in an error body, with its type and code; the body itself if it has another form."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error: Any = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict) or "message" not in error:
        return error if isinstance(error, str) else text
    parts = [error.get(name) for name in ("message", "type", "code")]
    return " ".join(part if isinstance(part, str) else json.dumps(part) for part in parts if part)


def _object_in(text: str, key: str | None) -> dict[str, Any]:
    """The JSON object that a body is, as valid Unicode and without the key; empty if it is another thing."""
    try:
        plain = valid_unicode(json.dumps(json.loads(text), ensure_ascii=False))  # a key may hide in escapes, as in \/
        body = json.loads(plain.replace(key, REDACTED) if key else plain)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _status_of(error: dict[str, Any]) -> int:
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 500
