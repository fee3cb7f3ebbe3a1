"""Fields of the `.json` next to an image in a shard, as the strings that a table would hold."""

from __future__ import annotations

import json

from precompute.errors import SourceError
from precompute.sources.base import ascii_name

MAX_JSON_BYTES = 2**20
MAX_VALUE_BYTES = 4096  # as in a table: each row of a column takes as much as the longest

Field = tuple[str, bool, bool]
"""The value, "" where there is none; whether it is a text, whatever it looks like; whether the field is there."""


def fields_of(content: bytes, names: tuple[str, ...], shown: str) -> list[Field]:
    """The fields of a JSON object of these names: strings, numbers, and true and false as 1 and 0.

    shown: shard and member. Raises SourceError for other JSON, and for a field that is a list or an object.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        why = "it is nested too deeply" if isinstance(error, RecursionError) else "it is not JSON in UTF-8"
        raise SourceError(f"{shown} cannot be read: {why}.", hint="Write the shard again.") from None
    if not isinstance(found, dict):
        raise SourceError(f"{shown} holds no JSON object.", hint='It looks like {"label": "cat", "age": 3}.')
    return [(*_text(found.get(name), f"{shown}: {ascii_name(name)!r}"), name in found) for name in names]


def _text(value: object, where: str) -> tuple[str, bool]:
    if value is None or value != value:  # noqa: PLR0124 - NaN, which is what a data frame writes for none
        return "", False
    if isinstance(value, bool):
        return str(int(value)), False
    if isinstance(value, int | float):
        return repr(value), False
    if not isinstance(value, str):
        kind = "a list" if isinstance(value, list) else "an object"
        raise SourceError(f"{where} holds {kind}.", hint="Strings, numbers, true and false can be used.")
    encoded = value.encode("utf-8", "surrogatepass")
    if len(encoded) > MAX_VALUE_BYTES or b"\0" in encoded:
        raise SourceError(
            f"{where} has {len(encoded):,} bytes or a NUL in them; {MAX_VALUE_BYTES:,} may be used.", hint="Shorten it."
        )
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise SourceError(f"{where} holds half a surrogate pair.", hint="Write it as Unicode.")
    return value, True
