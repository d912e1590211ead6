"""The HTTP endpoint of an exported model, the only module of this room that needs starlette and uvicorn.

    POST /recommend   RecommendRequest → items and scores, for one history or several
    POST /similar     SimilarRequest → items and scores
    GET  /health      which export answers
    GET  /metrics     counters and histograms for Prometheus

Every answer names its export by hash; an error is {"error": sentence}. Not covered: who may connect (`server/`).
"""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..data.errors import ExportError
from .batching import BatchLimits, DynamicBatcher, QueueFullError
from .live_export import LiveExport
from .merged import Answer, answer_all
from .request_metrics import CONTENT_TYPE, RequestMetrics, Sample
from .requests import AnyRequest, RecommendRequest, SimilarRequest, num_users, parse
from .results import RecommendationBatch, Recommendations

logger = logging.getLogger(__name__)

MAX_BODY = 1 << 20  # bytes
BODY_SECONDS = 10.0  # in which a body must arrive
RETRY_SECONDS = 1
WATCH_SECONDS = 1.0  # between two looks at the manifest
SHUTDOWN_SECONDS = 10  # for requests in progress

PATHS = "this endpoint has POST /recommend, POST /similar, GET /health and GET /metrics"

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class _Named:
    """An answer and the hash of the export that gave it."""

    answer: Answer
    export: str


class Endpoint:
    """The routes and what they share."""

    def __init__(self, live: LiveExport, limits: BatchLimits) -> None:
        self.live = live
        self._metrics = RequestMetrics()
        self._batcher: DynamicBatcher[AnyRequest, _Named] = DynamicBatcher(
            self._answer, limits, self._metrics.batches.observe
        )

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/recommend", self._measured(self._recommend), methods=["POST"]),
            Route("/similar", self._measured(self._similar), methods=["POST"]),
            Route("/health", self._measured(self._health)),
            Route("/metrics", self._measured(self._show_metrics)),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _refusal})

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._batcher.start()
        hangup = asyncio.Event()
        loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, hangup.set)
        watch = asyncio.create_task(self._watch(hangup))
        yield
        watch.cancel()
        await self._batcher.stop()

    async def _watch(self, hangup: asyncio.Event) -> None:
        """Look for a new export every WATCH_SECONDS, and at once after SIGHUP."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(hangup.wait(), WATCH_SECONDS)
            force = hangup.is_set()
            hangup.clear()
            await asyncio.to_thread(self.live.reload, force)

    def _answer(self, requests: Sequence[AnyRequest]) -> list[_Named]:
        served = self.live.current  # one export for the whole batch, even if it is replaced meanwhile
        return [_Named(answer, served.sha256) for answer in answer_all(served.recommender, requests)]

    async def _recommend(self, request: Request) -> Response:
        return await self._submit(parse(RecommendRequest, await _body(request)))

    async def _similar(self, request: Request) -> Response:
        return await self._submit(parse(SimilarRequest, await _body(request)))

    async def _submit(self, request: AnyRequest) -> Response:
        found = await self._batcher.submit(request, num_users(request))
        if isinstance(found.answer, ExportError):
            raise found.answer
        return JSONResponse({"export": found.export, **_content(found.answer)})

    async def _health(self, _: Request) -> Response:
        export = self.live.current.recommender.export
        return JSONResponse(
            {
                "status": "ok",
                "export": self.live.current.sha256,
                "trials": [member.trial for member in export.members],
                "dataset": export.config.dataset.name,
                "items": export.config.num_items,
            }
        )

    async def _show_metrics(self, _: Request) -> Response:
        live = self.live
        loads: list[Sample] = [({"result": "loaded"}, live.num_loads), ({"result": "failed"}, live.num_failures)]
        text = self._metrics.text(
            [
                ("waiting_users", "gauge", "Users in the queue.", [({}, self._batcher.waiting)]),
                ("export_loads_total", "counter", "Exports loaded, and failed attempts.", loads),
                ("export_info", "gauge", "The export in use.", [({"sha256": live.current.sha256}, 1)]),
            ]
        )
        return Response(text, headers={"content-type": CONTENT_TYPE})

    def _measured(self, handler: Handler) -> Handler:
        """The handler with errors as answers, and with its requests counted."""

        async def handle(request: Request) -> Response:
            started = time.perf_counter()
            status = 500
            try:
                response = await _with_refusals(handler, request)
                status = response.status_code
                return response
            finally:
                self._metrics.count(request.url.path, status, time.perf_counter() - started)

        return handle


async def _with_refusals(handler: Handler, request: Request) -> Response:
    try:
        return await handler(request)
    except ExportError as error:
        return JSONResponse({"error": str(error)}, 422)
    except QueueFullError:
        sentence = f"too many requests are waiting; send this one again in {RETRY_SECONDS} s"
        return JSONResponse({"error": sentence}, 503, {"Retry-After": str(RETRY_SECONDS)})
    except HTTPException as error:
        return await _refusal(request, error)


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = PATHS if error.status_code in (404, 405) else error.detail
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _body(request: Request) -> bytes:
    """The body of a request, at most MAX_BODY bytes. Raises HTTPException."""
    too_large = HTTPException(413, f"the body has more than {MAX_BODY:,} bytes; send fewer histories per request")
    if int(request.headers.get("content-length") or 0) > MAX_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS:.0f} s; send it again") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client closed the connection before the end of the body") from None
    return bytes(body)


def _content(answer: Recommendations | RecommendationBatch) -> dict[str, Any]:
    if isinstance(answer, RecommendationBatch):
        return {"results": [_content(user) for user in answer]}
    return {
        "items": answer.items,
        "scores": answer.scores,
        "unknown": answer.unknown,
        "by_popularity": answer.by_popularity,
    }


def serve_endpoint(  # noqa: PLR0913, PLR0917 - the parts that the caller brings
    directory: Path,
    device: str,
    listener: socket.socket,
    guard: Callable[[ASGIApp], ASGIApp],
    protocol: type[asyncio.Protocol],
    limits: BatchLimits,
) -> None:
    """Serve the export in `directory` on a listening socket until SIGTERM or SIGINT; requests in progress are finished.

    guard: the application around the endpoint that decides who may use it. protocol: what handles a connection, a
    subclass of uvicorn's, with its limits for slow clients and for the number of connections. Raises ExportError or
    MachineError before anything is served.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)  # also while the export is loaded; uvicorn calls it after its own shutdown
    live = LiveExport(directory, device)
    config = uvicorn.Config(
        guard(Endpoint(live, limits).app()),
        http=protocol,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    host, port = listener.getsockname()[:2]
    logger.info("answering from export %s", live.current.sha256)
    logger.info("serving %s at http://%s:%d", directory.name, f"[{host}]" if ":" in host else host, port)
    uvicorn.Server(config).run(sockets=[listener])


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
