"""Dynamic batching: requests that wait while a batch is computed form the next one. Independent of HTTP.

One thread computes, so that batches follow each other without contention, while the event loop reads further requests.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """The queue has no room for a request; send it again later."""


@dataclass(frozen=True)
class BatchLimits:
    """Sizes in users, that is in histories to score."""

    max_batch: int = 64  # users of a batch; a request with more users is a batch of its own
    window: float = 0.0  # seconds that an incomplete batch waits for further requests
    max_waiting: int = 1024  # users that wait for a batch; more are refused


@dataclass
class _Waiting(Generic[Request, Result]):
    request: Request
    size: int
    future: "asyncio.Future[Result]"


class DynamicBatcher(Generic[Request, Result]):
    """A bounded queue before `answer`, which computes the results of several requests at once, in their order.

    Within one event loop: call `start` in it, `submit` from it, and `stop` at its end.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Request]], Sequence[Result]],
        limits: BatchLimits = BatchLimits(),
        observe: Callable[[int], None] = lambda users: None,
    ) -> None:
        self._answer, self._limits, self._observe = answer, limits, observe
        self._queue: deque[_Waiting[Request, Result]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._runner: asyncio.Task[None] | None = None
        self.waiting = 0  # users in the queue

    def start(self) -> None:
        """Begin to compute batches."""
        self._runner = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Finish the current batch and stop; requests that still wait are cancelled."""
        assert self._runner is not None
        self._runner.cancel()
        await asyncio.wait([self._runner])
        for waiting in self._queue:
            waiting.future.cancel()
        self._thread.shutdown()

    async def submit(self, request: Request, size: int = 1) -> Result:
        """The result for a request of `size` users. QueueFullError if too many users wait already."""
        if self.waiting and self.waiting + size > self._limits.max_waiting:
            raise QueueFullError
        waiting: _Waiting[Request, Result] = _Waiting(request, size, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self.waiting += size
        self._arrived.set()
        return await waiting.future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if self._limits.window and self.waiting < self._limits.max_batch:
                await asyncio.sleep(self._limits.window)
            batch = self._take()
            if not batch:
                continue
            self._observe(sum(each.size for each in batch))
            computed = loop.run_in_executor(self._thread, self._answer, [each.request for each in batch])
            await asyncio.wait([computed])
            _deliver(batch, computed)

    def _take(self) -> list[_Waiting[Request, Result]]:
        """The next requests, up to max_batch users, without those whose client has gone."""
        batch: list[_Waiting[Request, Result]] = []
        room = self._limits.max_batch
        while self._queue and (not batch or self._queue[0].size <= room):
            waiting = self._queue.popleft()
            self.waiting -= waiting.size
            if not waiting.future.done():
                batch.append(waiting)
                room -= waiting.size
        if not self._queue:
            self._arrived.clear()
        return batch


def _deliver(batch: list[_Waiting[Request, Result]], computed: "asyncio.Future[Sequence[Result]]") -> None:
    """Hand the results, or the error of the whole batch, to the waiting requests."""
    error = computed.exception()
    for position, waiting in enumerate(batch):
        if waiting.future.done():
            continue
        if error is not None:
            waiting.future.set_exception(error)
        else:
            waiting.future.set_result(computed.result()[position])
