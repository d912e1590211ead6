"""The schemas of a tool as clients receive them: short, and without what converters of clients lose or refuse.

Frameworks turn a schema into one of their own: strict function calling, a protobuf, a class. What pydantic generates is
therefore written out: a reference is replaced by what it names, and alternatives by the first of them that is not null
(`arguments.py` reads the others too). Titles, defaults and bounds are left out: the descriptions say what an agent
needs of them, the server applies them, and strict function calling refuses defaults. `additionalProperties` is left
out too: strict converters add it where they close an object, and the one of google-genai fails on it. An open object
has empty `properties`, without which converters would not close it.

A schema of an output has no descriptions: what the fields mean is in the text of the result.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import create_model

Schema = dict[str, Any]

WORKSPACE = "ws"
_KEPT = ("type", "description", "enum", "required")
_BOUNDS = ("minimum", "maxItems", "maxLength")


def input_schema(tool: Callable[..., Any]) -> Schema:
    """The schema of the parameters of `tool`, without its workspace, with the bounds that the server checks."""
    parameters = inspect.signature(inspect.unwrap(tool), eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        p.name: (p.annotation, ... if p.default is inspect.Parameter.empty else p.default)
        for p in parameters
        if p.name != WORKSPACE
    }
    schema = create_model("Arguments", **fields).model_json_schema()
    return _plain(schema, schema.get("$defs", {}))


def published(schema: Any) -> Any:
    """An input schema as the list of tools shows it."""
    if isinstance(schema, list):
        return [published(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: published(part) for key, part in schema.items() if key not in _BOUNDS}


def output_schema(schema: Schema) -> Schema:
    """Of the schema of a result, as pydantic generates it: the fields that are always there, nested ones as objects.

    The others are left out of a structure that has nothing to say of them (`answers.py`), and every list of tools would
    carry their schemas.
    """
    definitions, always = schema.get("$defs", {}), schema.get("required", [])
    fields = {name: written_out(schema["properties"][name], definitions) for name in always}
    types = {name: {"type": field["type"]} if "type" in field else {} for name, field in fields.items()}
    return {"type": "object", "properties": types, "required": always}


def _plain(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    node = written_out(node, definitions)
    plain: Schema = {key: node[key] for key in (*_KEPT, *_BOUNDS) if key in node}
    if "items" in node:
        plain["items"] = _plain(node["items"], definitions)
    if node["type"] == "object":
        properties = node.get("properties", {})
        plain["properties"] = {name: _plain(part, definitions) for name, part in properties.items()}
    return plain


def written_out(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """A node in place of its reference or of its alternatives, with its own description.

    That of a definition is the docstring of a class, and is left out.
    """
    own = {"description": node["description"]} if "description" in node else {}
    if "anyOf" in node:
        return written_out({**next(part for part in node["anyOf"] if part != {"type": "null"}), **own}, definitions)
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        return {key: part for key, part in target.items() if key != "description"} | own
    return node
