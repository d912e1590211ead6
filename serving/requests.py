"""The requests of the endpoint as JSON objects, and their limits. Not covered: HTTP and the answers."""

import math
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..data.errors import ExportError
from ..data.wording import counted

MAX_HISTORIES = 256  # histories of one request
MAX_HISTORY = 5_000  # events of one history
MAX_K = 1_000
MAX_CHOICE = 10_000  # candidates, or excluded items
MAX_SECONDS = 2**62  # of a time


def _id(value: Any) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("an item id is a string or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("an item id is a string or a finite number")  # the answer would name it, which JSON cannot
    return value


def _times(rows: list[Any]) -> list[Any]:
    flat = [time for row in rows for time in (row if isinstance(row, list) else [row])]
    numbers = (isinstance(time, (int, float)) and not isinstance(time, bool) for time in flat)
    if not all(numbers) or not all(abs(time) < MAX_SECONDS for time in flat):
        raise ValueError("a time is a number of seconds since 1970")
    return rows


Id = Annotated[Any, AfterValidator(_id)]
Times = Annotated[list[Any], AfterValidator(_times)]  # lists of numbers, nested as the histories are
History = Annotated[list[Id], Field(max_length=MAX_HISTORY)]
Choice = Annotated[list[Id], Field(max_length=MAX_CHOICE)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecommendRequest(_Request):
    """POST /recommend: `history` asks for one list of items, `histories` for one list each; ids are original ids."""

    history: History | None = None  # oldest first
    histories: Annotated[list[History], Field(min_length=1, max_length=MAX_HISTORIES)] | None = None
    times: Times | None = None  # of each event, in seconds since 1970
    k: int = Field(default=10, ge=1, le=MAX_K)
    candidates: Choice | None = None  # the only items to choose from
    exclude: Choice = []
    mask_seen: bool = True

    @model_validator(mode="after")
    def _check(self) -> "RecommendRequest":
        if (self.history is None) == (self.histories is None):
            raise ValueError("give either history, a list of item ids, or histories, a list of such lists")
        if self.times is not None and self._lengths_of_times() != [len(row) for row in self.rows]:
            raise ValueError("times must have the same lists as the histories, with one number per event")
        return self

    def _lengths_of_times(self) -> list[int]:
        assert self.times is not None
        nested = [isinstance(row, list) for row in self.times]
        if self.history is not None:
            return [-1] if any(nested) else [len(self.times)]
        return [len(row) if isinstance(row, list) else -1 for row in self.times]

    @property
    def rows(self) -> list[list[Any]]:
        """The histories, also of a request for one."""
        return [self.history] if self.history is not None else self.histories or []

    @property
    def rows_of_times(self) -> list[list[Any]] | None:
        """The times of `rows`."""
        if self.times is None:
            return None
        return [self.times] if self.history is not None else self.times  # type: ignore[return-value]


class SimilarRequest(_Request):
    """POST /similar: the items whose vectors are closest to that of `item`."""

    item: Id
    k: int = Field(default=10, ge=1, le=MAX_K)


AnyRequest = RecommendRequest | SimilarRequest
Kind = TypeVar("Kind", RecommendRequest, SimilarRequest)


def parse(kind: type[Kind], body: bytes) -> Kind:
    """The request in a JSON text. Raises ExportError, whose text names the field and the rule."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        places = [
            str(part) for part in first["loc"] if not str(part).startswith(("constrained-", "list[", "function-"))
        ]
        place = ".".join(places)
        more = f" (and {counted(error.error_count() - 1, 'more error')})" if error.error_count() > 1 else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ExportError(f"{place}: {message}{more}" if place else f"{message}{more}") from None


def num_users(request: AnyRequest) -> int:
    """The number of histories to score for a request."""
    return len(request.rows) if isinstance(request, RecommendRequest) else 1
