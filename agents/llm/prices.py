"""Prices of language models: a dated table in TOML, which users override row by row with files of their own.

A row: provider (the name in `settings.HOSTS`, a host, or `local`), model ("*" = any), US dollars per million tokens for
input, cached, cache_write, output and reasoning, source (a URL), as_of (a date), and optionally up_to_input: the row
holds for prompts of at most so many tokens. Missing prices: cached and cache_write cost as input, reasoning as output.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ...data.errors import LanguageModelError
from .messages import Usage

_DATE_SUFFIX = re.compile(r"[-@](\d{4}-?\d{2}-?\d{2}|latest)$")
PER = 1_000_000


class Price(BaseModel):
    """One row: US dollars per million tokens by kind."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    provider: str
    model: str
    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)
    cache_write: float | None = Field(None, ge=0)
    reasoning: float | None = Field(None, ge=0)
    up_to_input: int | None = Field(None, gt=0)
    source: str
    as_of: date

    def cost(self, usage: Usage) -> float:
        """The price of a call in US dollars."""
        total = (
            usage.input * self.input
            + usage.cached * _or(self.cached, self.input)
            + usage.cache_write * _or(self.cache_write, self.input)
            + usage.output * self.output
            + usage.reasoning * _or(self.reasoning, self.output)
        )
        return total / PER

    def worst_cost(self, input_tokens: int, output_tokens: int) -> float:
        """The price of a call of which nothing is read from the cache and the output is used up."""
        input_price = max(self.input, self.cache_write or 0.0)
        output_price = max(self.output, self.reasoning or 0.0)
        return (input_tokens * input_price + output_tokens * output_price) / PER


_ROWS = TypeAdapter(list[Price])


@dataclass(frozen=True)
class PriceTable:
    """Rows in order of precedence."""

    rows: Sequence[Price]

    @classmethod
    def load(cls, own: Sequence[Path] = ()) -> "PriceTable":
        """The rows of the files in `own`, the last file first, before those of the package.

        Raises LanguageModelError for a file that cannot be read or has a wrong row.
        """
        shipped = files(__package__).joinpath("prices.toml").read_text(encoding="utf-8")
        rows = [row for path in reversed(own) for row in _parse(_read(path), str(path))]
        return cls([*rows, *_parse(shipped, "prices.toml of the package")])

    def find(self, provider: str, model: str, input_tokens: int = 0) -> Price | None:
        """The row for a prompt of `input_tokens`; None if the table has none.

        A model is found by its name, then by its name without a date or -latest at its end, then by "*".
        """
        for name in (model, _DATE_SUFFIX.sub("", model), "*"):
            for row in self.rows:
                fits = row.up_to_input is None or input_tokens <= row.up_to_input
                if row.provider == provider and row.model == name and fits:
                    return row
        return None


def _parse(text: str, where: str) -> list[Price]:
    try:
        return _ROWS.validate_python(tomllib.loads(text).get("price", []))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise LanguageModelError(
            f"the prices in {where} are not usable: {' '.join(str(error).split())}; every [[price]] needs provider, "
            "model, input, output (dollars per million tokens), source and as_of"
        ) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise LanguageModelError(f"the price file {path} cannot be read; name a TOML file with --prices") from None


def _or(price: float | None, fallback: float) -> float:
    return fallback if price is None else price
