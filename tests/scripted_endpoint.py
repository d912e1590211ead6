"""A language-model server on loopback for tests: both wire formats over real HTTP, answers from a script, own counts.

    with ScriptedEndpoint([Answer("hello"), RateLimit("0.1"), Answer(calls=[Call("run", {"x": 1})])]) as endpoint:
        ...  # endpoint.openai_url (POST .../chat/completions) or endpoint.anthropic_url (POST .../v1/messages)
    endpoint.requests  # every request, with its body
    endpoint.answered  # how many got a reply that is charged
    endpoint.tokens    # the endpoint's own count over these: input, cached, cache_write, output, reasoning

The script is a list of behaviours, used up in order, or a function from a request (`Received`) to a behaviour. `Model`
says what the model cannot do; a request that asks for it gets the provider's 400 and uses up no behaviour. Tokens are
counted by `count_tokens`, which is deterministic and close to real tokenisers (4 letters, 2 digits or 1 sign each).

Not covered: streaming, images. A reply that the client no longer waits for (time-out, kill) is not charged.
"""

import json
import re
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from tests.scripted_wires import WIRES, Wire, prompt_of

CACHE_MINIMUM = 1024  # tokens; as at OpenAI and Anthropic, a shorter prefix is not cached
CACHE_STEP = 128


def count_tokens(text: str) -> int:
    """The number of tokens of a text, the same in every process."""
    return len(re.findall(r"[^\W\d_]{1,4}|\d{1,2}|[^\w\s]|_", text))


@dataclass(frozen=True)
class Call:
    """A tool call. `arguments` given as a text are sent as they are, well formed or not."""

    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict)

    @property
    def raw(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


@dataclass(frozen=True)
class Answer:
    """A reply that is charged. `stop`: end, tool_calls, length or refusal; by default it follows from the calls.

    `delay`: seconds before the reply (a time-out, if the client waits less). `report_usage=False`: a server that does
    not say what it counted. `reasoning`: tokens of hidden reasoning.
    """

    text: str = ""
    calls: Sequence[Call] = ()
    stop: str = ""
    reasoning: int = 0
    delay: float = 0.0
    report_usage: bool = True

    @property
    def stopped(self) -> str:
        return self.stop or ("tool_calls" if self.calls else "end")

    @property
    def output(self) -> int:
        return count_tokens(self.text) + sum(count_tokens(call.name + call.raw) for call in self.calls)


def Truncated(text: str = "", calls: Sequence[Call] = ()) -> Answer:  # noqa: N802 - reads like the other behaviours
    """A reply cut off at the output limit: half of the text, and half of the arguments of the last call."""
    cut = [*calls[:-1], *(Call(call.name, call.raw[: len(call.raw) // 2]) for call in calls[-1:])]
    return Answer(text[: len(text) // 2] if not calls else text, cut, stop="length")


def Refused(text: str = "I can't help with that.") -> Answer:  # noqa: N802
    """The model refuses."""
    return Answer(text, stop="refusal")


@dataclass(frozen=True)
class Failure:
    """An HTTP error in the provider's form; nothing is charged."""

    status: int
    message: str
    type: str = ""
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None  # replaces the provider's form, e.g. by the HTML page of a proxy


def RateLimit(retry_after: str | None = None, retry_after_ms: str | None = None) -> Failure:  # noqa: N802
    """429, with the headers given."""
    headers = {"retry-after": retry_after, "retry-after-ms": retry_after_ms}
    given = {name: value for name, value in headers.items() if value is not None}
    return Failure(429, "Rate limit reached for requests", "rate_limit_error", "rate_limit_exceeded", headers=given)


OUT_OF_QUOTA = Failure(
    429,
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.",
    "insufficient_quota",
    "insufficient_quota",
)
OUT_OF_CREDIT = Failure(
    400,
    "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase "
    "credits.",
    "invalid_request_error",
)
SERVER_ERROR = Failure(500, "The server had an error while processing your request", "server_error")
OVERLOADED = Failure(529, "Overloaded", "overloaded_error")
WRONG_KEY = Failure(401, "Incorrect API key provided", "invalid_request_error", "invalid_api_key")


@dataclass(frozen=True)
class Dropped:
    """The connection closes without a reply, or in the middle of one; nothing is charged."""

    midway: bool = False


Behaviour = Answer | Failure | Dropped


@dataclass(frozen=True)
class Received:
    """A request as the endpoint received it. `number`: 1 for the first of the endpoint."""

    number: int
    wire: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        """All text that the model reads: system prompt, messages, tool calls and results, descriptions of tools."""
        return prompt_of(self.body)

    @property
    def tools(self) -> list[str]:
        """The names of the tools offered natively."""
        return [(tool.get("function") or tool)["name"] for tool in self.body.get("tools", ())]


@dataclass(frozen=True)
class Model:
    """What the served model cannot do, and the key that it asks for. The texts are those of real providers."""

    tools: bool = True
    temperature: bool = True
    max_tokens: bool = True  # False: it wants max_completion_tokens
    max_completion_tokens: bool = True
    system: bool = True
    key: str | None = None

    def complaint(self, received: Received) -> Failure | None:
        """The error for a request that asks for something that the model cannot do."""
        return self._wrong_key(received) or next(self._unsupported(received), None)

    def _wrong_key(self, received: Received) -> Failure | None:
        key = WIRES[received.wire].key_of(received.headers)
        if self.key is None or key == self.key:
            return None
        # real providers repeat a part of the key, some all of it
        return Failure(401, f"Incorrect API key provided: {key}.", "invalid_request_error", "invalid_api_key")

    def _unsupported(self, received: Received) -> Iterator[Failure]:
        body = received.body
        if not self.tools and body.get("tools"):
            yield Failure(400, f"registry.ollama.ai/library/{body['model']} does not support tools", "api_error")
        if not self.temperature and "temperature" in body:
            yield WIRES[received.wire].temperature_complaint(body["temperature"])
        if not self.max_tokens and "max_tokens" in body and received.wire == "openai":
            text = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            yield _invalid(f"Unsupported parameter: {text}", "max_tokens", "unsupported_parameter")
        if not self.max_completion_tokens and "max_completion_tokens" in body:
            yield _invalid("Unrecognized request argument supplied: max_completion_tokens", None, None)
        if not self.system and any(message["role"] == "system" for message in body["messages"]):
            text = "Unsupported value: 'messages[0].role' does not support 'system' with this model."
            yield _invalid(text, "messages[0].role", "unsupported_value")


def _invalid(message: str, param: str | None, code: str | None) -> Failure:
    return Failure(400, message, "invalid_request_error", code, param)


Script = Sequence[Behaviour] | Callable[[Received], Behaviour]


class ScriptedEndpoint:
    """The server; a context manager. See the module's docstring."""

    def __init__(self, script: Script, model: Model | None = None) -> None:
        self.model = model or Model()
        self.requests: list[Received] = []
        self.tokens: Counter[str] = Counter()
        self.answered = 0
        self.complaints = 0
        self._script = script
        self._served = 0
        self._prompts: list[str] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def openai_url(self) -> str:
        """The base URL of the OpenAI-compatible format."""
        return f"{self.address}/v1"

    @property
    def anthropic_url(self) -> str:
        """The base URL of the Anthropic format."""
        return f"{self.address}/anthropic"

    def __enter__(self) -> "ScriptedEndpoint":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def receive(self, wire: str, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Received:
        """Record a request."""
        with self._lock:
            received = Received(len(self.requests) + 1, wire, path, headers, body)
            self.requests.append(received)
            return received

    def behaviour(self, received: Received) -> Behaviour:
        """Choose what to do with a request."""
        with self._lock:
            complaint = self.model.complaint(received)
            if complaint:
                self.complaints += 1
                return complaint
            self._served += 1
            if callable(self._script):
                return self._script(received)
            if self._served > len(self._script):
                return Failure(418, f"the script has {len(self._script)} behaviours and this is request {self._served}")
            return self._script[self._served - 1]

    def charge(self, received: Received, answer: Answer) -> Counter[str]:
        """Count the tokens of a reply."""
        with self._lock:
            total = count_tokens(received.prompt)
            cached, cache_write = self._cache(received, total)
            kinds = {"input": total - cached - cache_write, "cached": cached, "cache_write": cache_write}
            tokens = Counter({**kinds, "output": answer.output, "reasoning": answer.reasoning})
            self.tokens.update(tokens)
            self.answered += 1
            return tokens

    def wait(self, seconds: float) -> None:
        """Wait, but no longer than the endpoint lives."""
        self._closing.wait(seconds)

    def _cache(self, received: Received, total: int) -> tuple[int, int]:
        """Tokens read from the cache and written to it, by the rules of the wire format's provider."""
        if received.wire == "anthropic":
            prefix = WIRES["anthropic"].cached_prefix(received.body)
            if count_tokens(prefix) < CACHE_MINIMUM:
                return 0, 0
            known = prefix in self._prompts
            self._prompts.append(prefix)
            return (count_tokens(prefix), 0) if known else (0, count_tokens(prefix))
        shared = max((_shared_tokens(received.prompt, prompt) for prompt in self._prompts), default=0)
        self._prompts.append(received.prompt)
        cached = shared // CACHE_STEP * CACHE_STEP if shared >= CACHE_MINIMUM else 0
        return min(cached, total - 1), 0


def _shared_tokens(one: str, other: str) -> int:
    """The tokens of the longest common prefix."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return count_tokens(one[:length])


def _handler_for(endpoint: ScriptedEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
            wire = next((wire for wire in WIRES.values() if self.path.endswith(wire.path)), None)
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if wire is None:
                self.reply(404, {"error": {"message": f"no such path: {self.path}"}})
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = endpoint.receive(wire.name, self.path, headers, body)
            behaviour = endpoint.behaviour(received)
            if isinstance(behaviour, Dropped):
                self.drop(behaviour.midway)
            elif isinstance(behaviour, Failure):
                content = behaviour.body if behaviour.body is not None else wire.error(behaviour)
                self.reply(behaviour.status, content, behaviour.headers)
            else:
                self.give(wire, received, behaviour)

        def give(self, wire: Wire, received: Received, answer: Answer) -> None:
            if answer.delay:
                endpoint.wait(answer.delay)
                if self.client_has_gone():
                    return
            tokens = endpoint.charge(received, answer)
            self.reply(200, wire.reply(str(received.body["model"]), received.number, answer, tokens))

        def client_has_gone(self) -> bool:
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

        def reply(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def drop(self, midway: bool) -> None:
            if midway:
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "10000")
                self.end_headers()
                self.wfile.write(b'{"id": "1", ')
            self.close_connection = True

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (BrokenPipeError, ConnectionResetError):  # the client has gone: it timed out or was killed
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    return Handler
