"""Options that several commands share, as one parameter of each command."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Option = tuple[Any, Any]
"""The annotation of an option, as typer reads it, and its default."""


def with_options(
    command: Callable[..., None], parameter: str, options: Mapping[str, Option], make: Callable[..., Any]
) -> Callable[..., None]:
    """A command with `options` in place of its parameter `parameter`, which gets what `make` makes of their values.

    Typer reads options from the signature; this one is composed, so that the commands share one declaration of each.
    """

    @functools.wraps(command)
    def composed(**given: Any) -> None:
        values = {name: given.pop(name) for name in options}
        command(**{parameter: make(**values)}, **given)

    own = inspect.signature(command)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]
    parameters: list[inspect.Parameter] = []
    for each in own.parameters.values():
        parameters += added if each.name == parameter else [each.replace(kind=each.KEYWORD_ONLY)]
    composed.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    composed.__annotations__ = {**command.__annotations__, **{name: option[0] for name, option in options.items()}}
    del composed.__annotations__[parameter]
    return composed
