"""What the footer of a Parquet file says of its row groups, read before pyarrow is asked.

pyarrow's own objects for a column's metadata end the process (`terminate called after throwing an instance of
'parquet::ParquetException'`) where a damaged or hostile footer makes them throw. The footer is one struct in Thrift's
compact protocol: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from precompute.errors import SourceError
from precompute.sources.files import read_at

MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 64 * 2**20
MAX_DEPTH = 16
TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
INTEGERS = (4, 5, 6)


@dataclass(frozen=True)
class ColumnChunk:
    """One column of one row group. size: bytes when it is unpacked · nulls: their number, None where it is not said."""

    size: int
    nulls: int | None


@dataclass(frozen=True)
class RowGroup:
    """Columns by their paths, such as `image.bytes`."""

    rows: int
    columns: Mapping[str, ColumnChunk]


def row_groups(file: BinaryIO, shown: str) -> tuple[RowGroup, ...]:
    """All row groups of an open Parquet file. Raises SourceError for a footer that is damaged."""
    size = os.fstat(file.fileno()).st_size
    tail = read_at(file.fileno(), 8, max(0, size - 8))
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length > size - 12:
        raise _damaged(shown, "no footer at its end")
    if length > MAX_FOOTER_BYTES:
        raise _damaged(shown, f"a footer of {length:,} bytes")
    try:
        found = _Reader(read_at(file.fileno(), length, size - 8 - length)).struct()
        return tuple(_group(one) for one in found.get(4, ()))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(shown, "a footer that is damaged") from error


def _damaged(shown: str, what: str) -> SourceError:
    return SourceError(f"{shown} cannot be read as Parquet: {what}.", hint="Write it again.")


def _group(group: dict[int, Any]) -> RowGroup:
    columns = {}
    for chunk in group[1]:
        about = chunk[3]
        path = b".".join(about[3]).decode()
        columns[path] = ColumnChunk(_count(about[6]), _nulls(about.get(12)))
    return RowGroup(_count(group[3]), columns)


def _nulls(statistics: dict[int, Any] | None) -> int | None:
    return None if statistics is None or 3 not in statistics else _count(statistics[3])


def _count(value: int) -> int:
    if not 0 <= value < 2**62:
        raise ValueError("no count")
    return value


class _Reader:
    """Values of Thrift's compact protocol. Whatever it reads takes a byte or more, so no length fills the memory."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place, self._depth = data, 0, 0

    def struct(self) -> dict[int, Any]:
        """Fields by their numbers."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("too deep")
        fields, number = {}, 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15)
        self._depth -= 1
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind in INTEGERS:
            return self._zigzag()
        if kind == BINARY:
            return self._bytes(self._varint())
        if kind == STRUCT:
            return self.struct()
        if kind in (LIST, SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._element(head & 15) for _ in range(count)]
        if kind in (BYTE, DOUBLE):
            return self._bytes(1 if kind == BYTE else 8)
        raise ValueError("a type that no footer has")

    def _element(self, kind: int) -> Any:
        return self._byte() if kind in (TRUE, FALSE) else self._value(kind)

    def _byte(self) -> int:
        self._place += 1
        return self._data[self._place - 1]

    def _bytes(self, count: int) -> bytes:
        self._place += count
        if self._place > len(self._data):
            raise IndexError("behind the end")
        return self._data[self._place - count : self._place]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80 and shift < 63:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
