"""The converters of agent frameworks lose nothing, and each can run a trial (tests/interop/converters.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop import converters
from tests.quick_home import environment

VARIABLE = "VIRTUALMLE_INTEROP_PYTHON"
BESIDE = converters.ROOT / ".venv-interop" / "bin" / "python"
SCHEMA = {
    "type": "object",
    "required": ["session"],
    "properties": {
        "session": {"type": "string", "description": "session id"},
        "rule": {
            "type": "object",
            "description": "a rule",
            "required": ["kind"],
            "properties": {"kind": {"type": "string", "description": "of its advice", "enum": ["prefer", "avoid"]}},
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}  # fmt: skip


def test_a_loss_in_a_converted_schema_is_found() -> None:
    session, rule = SCHEMA["properties"]["session"], SCHEMA["properties"]["rule"]
    kind = rule["properties"]["kind"]
    without_choices = {**rule, "properties": {"kind": {**kind, "enum": ["prefer"]}}}
    wordless = {**rule, "properties": {"kind": {**kind, "description": ""}}}
    assert converters.lost(SCHEMA, SCHEMA, flat=False) == []
    for properties, fault in (
        ({"session": session}, ".rule"),
        ({"session": session, "rule": {**rule, "properties": {}}}, ".rule.kind"),
        ({"session": session, "rule": without_choices}, ".rule.kind: choices"),
        ({"session": session, "rule": wordless}, ".rule.kind: description"),
        ({"session": {**session, "type": "number"}, "rule": rule}, ".session: type"),
    ):
        assert fault in converters.lost(SCHEMA, {**SCHEMA, "properties": properties}, flat=False)


def test_a_reference_and_an_alternative_with_null_lose_nothing() -> None:
    properties = SCHEMA["properties"]
    definitions = {"Rule": {name: part for name, part in properties["rule"].items() if name != "description"}}
    rule = {"anyOf": [{"$ref": "#/$defs/Rule"}, {"type": "null"}], "description": "a rule"}
    converted = {**SCHEMA, "properties": {**properties, "rule": rule}, "$defs": definitions}
    assert converters.lost(SCHEMA, converted, flat=False) == []


def test_a_schema_that_strict_function_calling_refuses_is_found() -> None:
    assert converters.strict_faults(SCHEMA) == [": optional properties"]
    assert converters.strict_faults({"type": "object", "properties": {}}) == [": an open object"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_framework_loses_anything_of_a_tool() -> None:
    python = Path(os.environ.get(VARIABLE, BESIDE))
    if not python.exists():
        pytest.skip(f"no environment with the frameworks; `make interop` builds it, or {VARIABLE} names its Python")
    command = [str(python), converters.__file__, "--server", sys.executable]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| all ") >= 6, f"at least six frameworks are installed there:\n{done.stdout}"
