"""MCP over standard input and output: a JSON-RPC message per line, and an answer to each line that is not one.

The SDK's transport drops a line that its parser refuses, so that the client waits for an answer that never comes. This
transport answers it with an error (JSON-RPC 2.0, section 5.1) and goes on with the next line. It keeps at most MAX_LINE
bytes of a line. Blank lines are skipped.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from mcp.server import MCPServer
from mcp.shared.message import SessionMessage
from mcp.types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    RequestId,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError
from pydantic_core import from_json

from ..tools.workspace import Workspace

MAX_LINE = 4 << 20  # bytes, as the SDK allows for the body of an HTTP request
CHUNK = 1 << 16

SHAPE = 'it is an object with jsonrpc="2.0", a method, and the id of the request, a string or an integer'


class RefusedLineError(ValueError):
    """A line that is no message; `answer` is what its sender gets."""

    def __init__(self, code: int, sentence: str, request: RequestId | None) -> None:
        super().__init__(sentence)
        self.answer = JSONRPCError(jsonrpc="2.0", id=request, error=ErrorData(code=code, message=sentence))


class Lines:
    """The lines of a file descriptor, read as they come."""

    def __init__(self, descriptor: int, limit: int = MAX_LINE) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._rest = b""

    def next(self) -> bytes | None:
        """The next line without its end; `limit` + 1 bytes of one that is longer than `limit`; None at the end."""
        line = bytearray()
        while True:
            if not self._rest:
                self._rest = os.read(self._descriptor, CHUNK)
            if not self._rest:
                return bytes(line) or None
            part, end, self._rest = self._rest.partition(b"\n")
            line += part[: self._limit + 1 - len(line)]
            if end:
                return bytes(line)


def message_in(line: bytes, limit: int = MAX_LINE) -> JSONRPCMessage:
    """The JSON-RPC message of a line. Raises RefusedLineError."""
    if len(line) > limit:
        raise RefusedLineError(INVALID_REQUEST, f"a message has at most {limit:,} bytes; send less text", None)
    try:
        content = from_json(line)
    except ValueError as error:  # no JSON, no UTF-8, lone surrogates, or nested too deeply
        raise RefusedLineError(PARSE_ERROR, f"this line cannot be read as JSON: {error}", _readable_id(line)) from None
    if isinstance(content, list):
        sentence = "batches are not part of this protocol; send their messages one by one, each on a line of its own"
        raise RefusedLineError(INVALID_REQUEST, sentence, None)
    try:
        message = jsonrpc_message_adapter.validate_python(content, by_name=False)
    except ValidationError:
        raise RefusedLineError(INVALID_REQUEST, f"this is no JSON-RPC message: {SHAPE}", _id_of(content)) from None
    if isinstance(message, JSONRPCNotification) and "id" in content:  # the SDK would ignore it for want of an answer
        raise RefusedLineError(INVALID_REQUEST, f"this is no JSON-RPC request: {SHAPE}", None)
    return message


def _readable_id(line: bytes) -> RequestId | None:
    """The id of a request that the parser refused, if a more tolerant one finds it."""
    try:
        return _id_of(json.loads(line.decode(errors="replace")))
    except (ValueError, RecursionError):
        return None


def _id_of(content: Any) -> RequestId | None:
    """The id of a request; None in a response, where the id is one of ours, which must not be answered."""
    request = content.get("id") if isinstance(content, dict) and "method" in content else None
    if isinstance(request, str):
        return request if request.isprintable() else None  # a lone surrogate is not printable
    return request if isinstance(request, int) and not isinstance(request, bool) else None


async def serve_stdio(server: MCPServer[Workspace]) -> None:
    """Serve until the end of standard input. Raises BrokenPipeError if nobody reads the answers."""
    incoming, messages = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    answers, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    lowlevel = server._lowlevel_server  # the SDK has no public way to run a server over streams
    with _diverted(0, os.devnull) as source, _diverted(1) as target:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read, Lines(source), incoming, answers.clone())
            tasks.start_soon(_write, target, outgoing)
            await lowlevel.run(messages, answers, lowlevel.create_initialization_options())


async def _read(
    lines: Lines, incoming: ObjectSendStream[SessionMessage | Exception], answers: ObjectSendStream[SessionMessage]
) -> None:
    async with incoming, answers:
        # The thread is abandoned if the server ends first: nothing else ends a read of a terminal or pipe.
        while (line := await anyio.to_thread.run_sync(lines.next, abandon_on_cancel=True)) is not None:
            if not line.strip():
                continue
            try:
                await incoming.send(SessionMessage(message_in(line)))
            except RefusedLineError as refused:
                await answers.send(SessionMessage(refused.answer))


async def _write(target: int, outgoing: ObjectReceiveStream[SessionMessage]) -> None:
    async with outgoing:
        async for answer in outgoing:
            text = answer.message.model_dump_json(by_alias=True, exclude_unset=True)
            await anyio.to_thread.run_sync(_write_all, target, text.encode() + b"\n")


def _write_all(target: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(target, rest) :]


@contextmanager
def _diverted(standard: int, stand_in: str | None = None) -> Iterator[int]:
    """A private duplicate of a standard descriptor.

    Meanwhile the descriptor itself leads to the file `stand_in`, or else to stderr, so that what a library prints, or
    a child process reads, is not part of the protocol. The duplicate is not closed: a thread may be reading from it.
    """
    private = os.dup(standard)
    other = os.dup(2) if stand_in is None else os.open(stand_in, os.O_RDONLY)
    os.dup2(other, standard)
    os.close(other)
    try:
        yield private
    finally:
        os.dup2(private, standard)
