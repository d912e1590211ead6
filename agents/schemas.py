"""JSON schemas as short as a language model needs them.

Every prompt carries the schemas of its tools, and converters of providers drop or refuse references and nulls. So a
reference is replaced by what it names, an optional value by its type, and titles, defaults and bounds are left out;
the server checks them.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..server.schemas import written_out

_KEPT = ("type", "description", "enum", "items", "required")


def compact_schema(model: type[BaseModel], opaque: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The schema of a model's fields. `opaque`: fields that are described by a text instead of by their own schema."""
    schema = model.model_json_schema()
    compacted = _compact({**schema, "description": None}, schema.get("$defs", {}))
    for name, text in (opaque or {}).items():
        if name in compacted["properties"]:
            kind = compacted["properties"][name]["type"]
            items = {"items": {"type": "object"}} if kind == "array" else {}
            compacted["properties"][name] = {"type": kind, "description": text, **items}
    return compacted


def _compact(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    node = written_out(node, definitions)
    short = {name: node[name] for name in _KEPT if node.get(name)}
    if "items" in short:
        short["items"] = _compact(short["items"], definitions)
    if "properties" in node:
        short["properties"] = {name: _compact(part, definitions) for name, part in node["properties"].items()}
    return short
