"""JSON Schemas (draft 2020-12) of what `--json` prints: one file for each command, and error.json for all of them.

Definitions that several outputs share are in parts.json; `schema_of` puts those that one needs inside, so that the
result needs no other file.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from precompute.errors import UsageError

__all__ = ["schema_names", "schema_of"]

PARTS = "parts"
SHARED, INSIDE = f"{PARTS}.json#/$defs/", "#/$defs/"


def schema_names() -> list[str]:
    """Commands whose output has a schema, and `error`."""
    found = (file.name for file in files(__name__).iterdir() if file.name.endswith(".json"))
    return sorted(name for name in (file.removesuffix(".json") for file in found) if name != PARTS)


def schema_of(name: str) -> dict[str, Any]:
    """The schema of a command's output, or of an error, that needs no other file.

    Raises UsageError where there is none of that name.
    """
    known = schema_names()
    if name not in known:
        raise UsageError(f"No output is called {name!r}.", hint=f"There are {', '.join(known)}.")
    schema, parts = _read(name), _read(PARTS)["$defs"]
    needed: dict[str, Any] = {}
    waiting = [schema]
    while waiting:
        for part in _used_by(waiting.pop()):
            if part not in needed:
                needed[part] = parts[part]
                waiting.append(parts[part])
    if needed:
        schema["$defs"] = {part: needed[part] for part in sorted(needed)}
    inside: dict[str, Any] = json.loads(json.dumps(schema).replace(f'"{SHARED}', f'"{INSIDE}'))
    return inside


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    return found


def _used_by(schema: Any) -> set[str]:
    """The shared definitions that `schema` refers to itself."""
    if isinstance(schema, list):
        return set[str]().union(*map(_used_by, schema))
    if not isinstance(schema, dict):
        return set()
    found = set[str]().union(*map(_used_by, schema.values()))
    target = schema.get("$ref")
    return found | {target.removeprefix(SHARED)} if isinstance(target, str) else found
