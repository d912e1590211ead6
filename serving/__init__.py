"""An exported model in use. `Recommender` is offered here and loaded on first use, because it imports torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recommender import Recommender

__all__ = ["Recommender"]


def __getattr__(name: str) -> Any:
    if name != "Recommender":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .recommender import Recommender  # noqa: PLC0415 - see above

    return Recommender
