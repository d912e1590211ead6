"""Reads the arguments of a tool call by the tool's schema: leniently, and with refusals that say what to correct.

Clients differ in what they can send. Some know one type of number only, some put objects into strings, and strict ones
must fill in every argument of the schema. So 1.0 is an integer, an object may come as its JSON text, names of choices
may be in any case, and an optional argument that is null or empty counts as left out.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..data.errors import ArgumentError
from ..data.wording import listed
from .schemas import Schema
from .suggestions import hint, reason

MAX_NAMED = 8  # unknown arguments that a refusal names
MAX_TEXT = 50_000  # characters of one text
MAX_DEPTH = 8  # levels of lists and objects in one argument
MAX_BITS = 1000  # of an integer; larger ones are no floats
_NAMES = re.compile(r"\s*[\w./-]+(\s*,\s*[\w./-]+)*\s*")
_NUMBER = re.compile(r"\s*[+-]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})\s*")
_WORDS = {"true": "yes", "false": "no"}  # for a choice of yes and no
_TYPES = {
    "string": "a text", "number": "a number", "integer": "an integer", "boolean": "true or false",
    "array": "a list", "object": "an object",
}  # fmt: skip


def read_arguments(tool: str, schema: Schema, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `tool`, with its `input_schema`, in the types that the schema names.

    Raises ArgumentError for the first argument that is unknown, missing, or of another type.
    """
    known = schema["properties"]
    if unknown := sorted(set(given) - set(known)):
        _refuse_unknown(tool, list(known), unknown)
    for name, value in given.items():
        _check_size(value, name)
    return _object(given, schema, "", tool)


def _refuse_unknown(tool: str, known: list[str], unknown: list[str]) -> None:
    named = ", ".join(f"{name!r:.60}{hint(name, known)}" for name in unknown[:MAX_NAMED])
    raise ArgumentError(
        f"{tool} has no argument {named}; its arguments are {', '.join(known) or 'none'}{reason(unknown, known)}"
    )


def _check_size(value: Any, name: str) -> None:
    """Refuse what no agent means: texts of a book's length, and lists in lists in lists."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        if too_long := next((len(part) for part in level if isinstance(part, str) and len(part) > MAX_TEXT), 0):
            raise ArgumentError(f"{name} has a text of {too_long:,} characters; give at most {MAX_TEXT:,}")
        level = [inner for part in level for inner in _parts(part)]
        if not level:
            return
    raise ArgumentError(f"{name} is nested in more than {MAX_DEPTH} levels; give what its description says")


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else ()


def _object(given: Mapping[str, Any], schema: Schema, path: str, whole: str) -> dict[str, Any]:
    """The properties of an object. path: what stands before their names; whole: the object's name in a refusal."""
    properties, required = schema["properties"], schema.get("required", [])
    if unknown := [name for name in given if name not in properties]:
        raise ArgumentError(
            f"{whole} has no property {unknown[0]!r:.60}{hint(unknown[0], list(properties))}; "
            f"its properties are {listed(list(properties))}"
        )
    decoded = {name: _decoded(value, properties[name], f"{path}{name}") for name, value in given.items()}
    present = {
        name: value
        for name, value in decoded.items()
        if value is not None and (name in required or not _is_empty(value, properties[name]))
    }
    blank = [] if path else [name for name in required if _is_blank(present.get(name))]  # of a nested one: no object
    if missing := [name for name in required if name not in present or name in blank]:
        about = properties[missing[0]].get("description", "")
        raise ArgumentError(f"{whole} needs {listed(missing)}" + (f" ({about})" if len(missing) == 1 else ""))
    return {name: _value(value, properties[name], f"{path}{name}") for name, value in present.items()}


def _decoded(value: Any, schema: Schema, path: str) -> Any:
    """The list or object that is sent as its JSON text; any other value as it is."""
    if schema["type"] not in ("array", "object") or not isinstance(value, str):
        return value
    parsed = _parsed(value)
    if not isinstance(parsed, list | dict):
        return None if value.strip() == "null" else value
    _check_size(parsed, path)
    return parsed


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _is_empty(value: Any, schema: Schema) -> bool:
    """Whether the value of an optional property says nothing, as strict clients send it that must send something."""
    if _is_blank(value) or (value == [] and schema["type"] in ("object", "string")):
        return True
    if isinstance(value, Mapping) and schema.get("properties"):
        choices = [name for name, part in schema["properties"].items() if "enum" in part]
        return all(name in schema["properties"] and (not part or name in choices) for name, part in value.items())
    return False


def _value(given: Any, schema: Schema, path: str) -> Any:
    read = _READERS[schema["type"]](given, schema, path)
    if read is None:
        about = f" ({schema['description']})" if "description" in schema else ""
        raise ArgumentError(f"{path}={given!r:.60} is not {_kind(schema)}{about}")
    return read


def _kind(schema: Schema) -> str:
    """What a schema expects, in words."""
    if schema["type"] == "object" and schema.get("properties"):
        return f"an object with {', '.join(schema['properties'])}"
    return _TYPES[schema["type"]]


def _text(given: Any, schema: Schema, path: str) -> str | None:
    """A text; of several names, or of a number or a boolean, the text that says the same."""
    if isinstance(given, list) and given and all(isinstance(part, str) for part in given):
        given = ", ".join(given)
    if isinstance(given, bool | int | float) and _is_sane(given):
        given = json.dumps(given)
    if not isinstance(given, str):
        return None
    if len(given) > schema.get("maxLength", len(given)):
        raise ArgumentError(f"{path} has {len(given):,} characters; give at most {schema['maxLength']:,}")
    return _choice(given, schema, path) if "enum" in schema else given


def _choice(given: str, schema: Schema, path: str) -> str:
    choices: list[str] = schema["enum"]
    folded = given.strip().lower().replace("-", "_").replace(" ", "_")
    folded = next((word for word in choices if word == _WORDS.get(folded)), folded)
    if folded not in choices:
        raise ArgumentError(f"{path}={given!r:.60} is not one of {', '.join(choices)}{hint(given, choices)}")
    return folded


def _number(given: Any, schema: Schema, path: str) -> float | None:
    number = _number_in(given) if isinstance(given, str) else given
    if isinstance(number, bool) or not isinstance(number, int | float):
        return None
    if not _is_sane(number):
        raise ArgumentError(f"{path} is not a finite number; give one, or leave {path} out")
    if number < schema.get("minimum", number):
        raise ArgumentError(f"{path}={number:g} is below {schema['minimum']:g}; give at least {schema['minimum']:g}")
    return number


def _number_in(text: str) -> float | None:
    """The number that a text is, also as the tools write it: "+.0031"."""
    parsed = _parsed(text)
    if parsed is None and _NUMBER.fullmatch(text):
        return float(text)
    return parsed if isinstance(parsed, int | float) else None


def _integer(given: Any, schema: Schema, path: str) -> int | None:
    number = _number(given, schema, path)
    return int(number) if number is not None and number == int(number) else None


def _is_sane(number: float) -> bool:
    """Whether a number is finite, and no integer of thousands of digits."""
    return number.bit_length() <= MAX_BITS if isinstance(number, int) else math.isfinite(number)


def _boolean(given: Any, schema: Schema, path: str) -> bool | None:
    if isinstance(given, str):
        return {"true": True, "false": False}.get(given.strip().lower())
    return bool(given) if isinstance(given, bool | int | float) and given in (0, 1) else None


def _array(given: Any, schema: Schema, path: str) -> list[Any] | None:
    items = schema["items"]
    if isinstance(given, str) and items["type"] == "string":  # "t001, t002" are two names; any other text is one
        given = re.split(r"\s*,\s*", given.strip()) if _NAMES.fullmatch(given) else [given]
    if isinstance(given, Mapping) and items["type"] == "object":
        given = [given]
    if not isinstance(given, list):
        return None
    most = schema.get("maxItems", len(given))
    if len(given) > most:
        raise ArgumentError(f"{path} has {len(given)} entries; give at most {most}")
    entries = [(_decoded(entry, items, f"{path}[{n}]"), f"{path}[{n}]") for n, entry in enumerate(given, 1)]
    return [_value(entry, items, name) for entry, name in entries if not _is_empty(entry, items)]


def _nested(given: Any, schema: Schema, path: str) -> dict[str, Any] | None:
    if not isinstance(given, dict):
        return None
    return _object(given, schema, f"{path}.", path) if schema.get("properties") else given


def _parsed(text: str) -> Any:
    """The JSON value that a text is; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a number of thousands of digits, or brackets nested thousands deep
        return None


_READERS: dict[str, Callable[[Any, Schema, str], Any]] = {
    "string": _text,
    "number": _number,
    "integer": _integer,
    "boolean": _boolean,
    "array": _array,
    "object": _nested,
}
