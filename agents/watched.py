"""A language model whose replies are reported, for displays."""

from collections.abc import Callable

from .llm.messages import LanguageModel, Reply, Request


class WatchedModel(LanguageModel):
    """Reports the session of every reply of `model`."""

    def __init__(self, model: LanguageModel, on_reply: Callable[[str], None]) -> None:
        self._model = model
        self._on_reply = on_reply

    async def complete(self, request: Request) -> Reply:
        """The reply of the model."""
        reply = await self._model.complete(request)
        self._on_reply(request.session)
        return reply

    def recall(self, session: str, step: str) -> Reply | None:
        """The stored reply of the model."""
        return self._model.recall(session, step)
