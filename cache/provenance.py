"""Who made the rows: one JSON object a line, one line a run, in a block of fixed size padded with NUL bytes.

Lines are only ever appended. A power cut in mid-append leaves a line that is not JSON: reading stops there, and the
next append starts there.
"""

from __future__ import annotations

import json
import math
from typing import Any

from precompute.cache.key import canonical_json

Record = dict[str, Any]


def parse(block: bytes) -> tuple[list[Record], int]:
    """The whole records at the start of `block`, and the number of bytes they take."""
    records: list[Record] = []
    used = 0
    while True:
        end = block.find(b"\n", used)
        if end < 0:
            return records, used
        try:
            record = json.loads(block[used:end], parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError):
            return records, used
        if not isinstance(record, dict):
            return records, used
        records.append(record)
        used = end + 1


def _finite(text: str) -> float:
    """Python's parser takes NaN, Infinity and 1e999 for numbers; JSON cannot hold what comes of them."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def encode(record: Record) -> bytes:
    return canonical_json(record).encode("ascii") + b"\n"


def pack(records: list[Record], size: int) -> bytes:
    """The newest of `records` that fit into half of `size` bytes, oldest first, so that later runs find room."""
    lines: list[bytes] = []
    for line in map(encode, reversed(records)):
        if sum(map(len, lines)) + len(line) > size // 2:
            break
        lines.append(line)
    return b"".join(reversed(lines))
