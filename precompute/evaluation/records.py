"""Results that a killed command need not find again: one JSON object a line, in the folder of the command."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from precompute.errors import UsageError
from precompute.system import sync

FORMAT = "precompute-results"
VERSION = 1
MOST_BYTES = 64 * 2**20  # a file of ours takes kilobytes


class Records:
    """The file at `path`: a first line that names its format, then pairs of a key and a result, each on the disk once
    `add` returns. A last line that was cut off by a kill is dropped. Keys are JSON objects: whatever decides a result.

    Raises UsageError for a file that is no such file, or one of another version.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._found: dict[str, Any] = {}
        whole = 0
        if os.path.lexists(path):
            whole = self._read()
        with open(path, "ab" if whole else "wb") as file:
            if whole:
                file.truncate(whole)  # what follows the last whole line
            else:
                file.write(_line({"format": FORMAT, "version": VERSION}))

    def _read(self) -> int:
        """Take in every whole line; how many bytes those are. 0 for a file that was killed in its first line."""
        if not os.path.isfile(self.path) or os.path.islink(self.path) or os.path.getsize(self.path) > MOST_BYTES:
            raise self._strange()
        with open(self.path, "rb") as file:
            data = file.read(MOST_BYTES)
        whole = data.rfind(b"\n") + 1
        first = _line({"format": FORMAT, "version": VERSION})
        if not whole and first.startswith(data):
            return 0
        if not data.startswith(first):
            raise self._strange()
        for line in data[len(first) : whole].splitlines():
            try:
                pair = json.loads(line)
                self._found[_name(pair["key"])] = pair["result"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise self._strange() from error
        return whole

    def _strange(self) -> UsageError:
        return UsageError(
            f"{self.path!r} holds no results of this precompute.",
            hint="It is left as it is. Choose another folder, or move that file away.",
        )

    def get(self, key: Mapping[str, Any]) -> Any | None:
        """The result of `key`, None where there is none yet."""
        return self._found.get(_name(key))

    def add(self, key: Mapping[str, Any], result: Any) -> None:
        """Keep a result, instead of an older one of this key."""
        with open(self.path, "ab") as file:
            file.write(_line({"key": key, "result": result}))
            file.flush()
            sync(file.fileno())
        self._found[_name(key)] = json.loads(json.dumps(result))


def _name(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _line(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, sort_keys=True).encode() + b"\n"
