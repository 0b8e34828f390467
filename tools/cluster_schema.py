"""Writes docs/cluster.schema.json: the JSON of /cluster, as it follows from the message that it is made of.

Run `python -m tools.cluster_schema` after a change of operations.proto; a test holds the file against the code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ryzanstein.v1 import operations_pb2

PATH = Path(__file__).parents[1] / "docs" / "cluster.schema.json"

#: Type of a scalar field → JSON type, by the descriptor's C++ type number.
_TYPES = {
    1: "integer",
    2: "integer",
    3: "integer",
    4: "integer",
    5: "number",
    6: "number",
    7: "boolean",
    9: "string",
}


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of ryzanstein.v1.ClusterSnapshot as `ryzanstein.wire.to_plain` renders it."""
    definitions: dict[str, Any] = {}
    _describe(operations_pb2.ClusterSnapshot.DESCRIPTOR, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Ryzanstein /cluster",
        "$ref": "#/$defs/ClusterSnapshot",
        "$defs": definitions,
    }


def _describe(message: Any, definitions: dict[str, Any]) -> None:
    if message.name in definitions:
        return
    entry: dict[str, Any] = {"type": "object", "additionalProperties": False}
    definitions[message.name] = entry
    entry["properties"] = {field.name: _field(field, definitions) for field in message.fields}
    entry["required"] = [field.name for field in message.fields]


def _field(field: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        _describe(field.message_type, definitions)
        value: dict[str, Any] = {"$ref": f"#/$defs/{field.message_type.name}"}
    else:
        value = {"type": _TYPES[field.cpp_type]}
    if field.is_repeated:
        return {"type": "array", "items": value}
    if field.has_presence:  # absent is null
        return {"anyOf": [value, {"type": "null"}]}
    return value


def text() -> str:
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
    sys.stdout.write(f"wrote {PATH}\n")
