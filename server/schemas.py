"""The input schema of a tool as clients receive it: short, and without what converters of clients lose or refuse.

Frameworks turn a schema into one of their own: strict function calling, a protobuf, a class. References, alternatives
with null and open objects get lost on the way, so what pydantic generates is written out here: a reference is replaced
by what it names, and alternatives by the first of them. `arguments.py` reads the others as well.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import create_model

Schema = dict[str, Any]

WORKSPACE = "ws"
_KEPT = ("type", "description", "enum", "required", "minimum", "maxItems")
_FOR_US = ("minimum", "maxItems")  # checked here; not every client knows them, and every list of tools would carry them


def input_schema(tool: Callable[..., Any]) -> Schema:
    """The schema of the parameters of `tool`, without its workspace, by which the server reads arguments."""
    parameters = inspect.signature(inspect.unwrap(tool), eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        p.name: (p.annotation, ... if p.default is inspect.Parameter.empty else p.default)
        for p in parameters
        if p.name != WORKSPACE
    }
    schema = create_model("Arguments", **fields).model_json_schema()
    return _plain(schema, schema.get("$defs", {})) | {"additionalProperties": False}


def published(schema: Any) -> Any:
    """An input schema as the list of tools shows it."""
    if isinstance(schema, list):
        return [published(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: published(part) for key, part in schema.items() if key not in _FOR_US}


def _plain(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    node = _written_out(node, definitions)
    plain: Schema = {key: node[key] for key in _KEPT if key in node}
    if _says_something(node.get("default")):
        plain["default"] = node["default"]
    if "items" in node:
        plain["items"] = _plain(node["items"], definitions)
        if plain["items"]["type"] == "object":
            plain["items"].pop("description", None)  # the docstring of a class; its properties have their own
    if "properties" in node:
        plain["properties"] = {name: _plain(part, definitions) for name, part in node["properties"].items()}
    return plain


def _says_something(default: object) -> bool:
    """Whether a default says more than that the argument may be left out."""
    return default not in (None, "", [], {}) and default is not False


def _written_out(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """A node in place of its reference or of its alternatives, with its own description and default."""
    own = {key: node[key] for key in ("description", "default") if key in node}
    if "anyOf" in node:
        return _written_out({**next(part for part in node["anyOf"] if part != {"type": "null"}), **own}, definitions)
    if "$ref" in node:
        return {**definitions[node["$ref"].rpartition("/")[2]], **own}
    return node
