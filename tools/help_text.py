"""Makes `help()` of a tool readable; its schema for MCP clients still comes from the function itself.

The arguments of a tool are `Annotated[T, Field(description=…)]`, which `help()` would print as it is. `described` wraps
the function in one whose signature has the plain types and whose docstring lists the descriptions. The server and the
command `call` unwrap it (`inspect.unwrap`), so that schemas, defaults and bounds stay those of the function.
"""

import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin

from pydantic.fields import FieldInfo

P = ParamSpec("P")
R = TypeVar("R")
WIDTH = 100


def described(tool: Callable[P, R]) -> Callable[P, R]:
    """`tool` with a signature of plain types, and with a docstring that ends with one entry per argument."""

    @functools.wraps(tool)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return tool(*args, **kwargs)

    signature = inspect.signature(tool)
    parameters = signature.parameters.values()
    entries = [_entry(parameter) for parameter in parameters if _description(parameter)]
    plain = [parameter.replace(annotation=_plain(parameter.annotation)) for parameter in parameters]
    call.__signature__ = signature.replace(parameters=plain)  # type: ignore[attr-defined]
    call.__doc__ = "\n".join([inspect.getdoc(tool) or "", "", "Arguments:", *entries])
    return call


def _entry(parameter: inspect.Parameter) -> str:
    """The name and type of an argument, and below them its description and its default."""
    default = parameter.default
    given = "" if default is inspect.Parameter.empty else f" (default: {default!r})"
    text = textwrap.fill(
        _description(parameter) + given,
        WIDTH,
        initial_indent=" " * 8,
        subsequent_indent=" " * 8,
        break_long_words=False,
    )
    return f"    {parameter.name}: {inspect.formatannotation(_plain(parameter.annotation))}\n{text}"


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _description(parameter: inspect.Parameter) -> str:
    """What the tool says about an argument; empty for the workspace."""
    notes = get_args(parameter.annotation)[1:] if get_origin(parameter.annotation) is Annotated else ()
    return next((note.description or "" for note in notes if isinstance(note, FieldInfo)), "")
