"""Renders the results of the tools as text for a language model."""

from pydantic import BaseModel


def text_of(result: BaseModel) -> str:
    """The result as text."""
    return result.model_dump_json(by_alias=True)
