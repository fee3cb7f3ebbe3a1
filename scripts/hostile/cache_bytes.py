"""Makes the bytes of caches changed in place: behind right checksums of HDF5's, and inside the columns."""

from __future__ import annotations

import struct

import numpy as np

from precompute.cache import Column

from .checksums import checked_blocks, lookup3
from .good import ROWS, WIDTH


def mended(data: bytes, start: int, old: bytes, new: bytes) -> bytes:
    """`data` with the first `old` from `start` on replaced by `new`, and HDF5's checksum over it made right again."""
    place = data.index(old, start)
    result = data[:place] + new + data[place + len(old) :]
    for begin, length in checked_blocks(data):
        if begin <= place < begin + length:
            sum_ = struct.pack("<I", lookup3(result[begin : begin + length]))
            return result[: begin + length] + sum_ + result[begin + length + 4 :]
    return result


def header_of(data: bytes, column: Column) -> int:
    """Where the object header of a column begins: the one that holds the column's offset."""
    address = struct.pack("<Q", column.offset)
    return max(start for start, length in checked_blocks(data) if start and address in data[start : start + length])


def structure_cases(data: bytes, columns: dict[str, Column]) -> dict[str, bytes]:
    """Bytes changed where HDF5 keeps its structure, behind right checksums."""
    features, sums = columns["features/flatten"], columns["checksums/flatten"]
    ids, notes = columns["samples/id"], columns["provenance"]
    address, shape = struct.pack("<Q", features.offset), struct.pack("<QQ", ROWS, WIDTH)
    head = header_of(data, features)
    cases = {
        f"offset_{name}": mended(data, head, address, struct.pack("<Q", value))
        for name, value in (
            ("at_the_end", len(data) - 8),
            ("beyond", 2**40),
            ("2_to_63", 2**63),
            ("minus_2", 2**64 - 2),
            ("undefined", 2**64 - 1),
            ("in_the_digests", columns["samples/digest"].offset),
            ("in_the_header", 0),
        )
    }
    for name, (rows, width) in {
        "shape_2_to_62": (ROWS, 2**62),
        "rows_2_to_62": (2**62, WIDTH),
        "shape_empty": (ROWS, 0),
        "rows_none": (0, WIDTH),
        "shape_one_more": (ROWS + 1, WIDTH),
    }.items():
        twice = data[head : head + 400].count(shape) > 1  # the largest extents may follow those of today
        changed = mended(data, head, shape, struct.pack("<QQ", rows, width))
        cases[name] = mended(changed, head, shape, struct.pack("<QQ", rows, width)) if twice else changed
    size = struct.pack("<Q", notes.nbytes)
    cases["provenance_2_to_40"] = mended(data, header_of(data, notes), size, struct.pack("<Q", 2**40))
    cases["ids_2_to_40"] = mended(data, header_of(data, ids), struct.pack("<Q", ROWS), struct.pack("<Q", 2**40))
    cases["checksums_2_to_40"] = mended(data, header_of(data, sums), struct.pack("<Q", ROWS), struct.pack("<Q", 2**40))
    return cases


def data_cases(data: bytes, columns: dict[str, Column]) -> dict[str, bytes]:
    """Bytes changed inside the columns, by damage or by forgery."""

    def put(name: str, row: int, value: bytes) -> bytes:
        place = columns[name].offset + row * columns[name].row_bytes
        return data[:place] + value + data[place + len(value) :]

    def row_of(name: str, row: int) -> bytes:
        place = columns[name].offset + row * columns[name].row_bytes
        return data[place : place + columns[name].row_bytes]

    def notes(text: bytes) -> bytes:
        return put("provenance", 0, text.ljust(columns["provenance"].nbytes, b"\0"))

    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    return {
        "labels_swapped": put("samples/label", 1, row_of("samples/label", 3) + row_of("samples/label", 2)),
        "ids_swapped": put("samples/id", 0, row_of("samples/id", 1) + row_of("samples/id", 0)),
        "class_renamed": put("classes", 0, b"z"),
        "column_changed": put("columns/site", 0, b"\3"),
        "split_changed": put("samples/split", 0, b"\3"),
        "nan_in_a_good_row": put("features/flatten", 0, np.float32(np.nan).tobytes()),
        "rows_exchanged": put("features/flatten", 0, row_of("features/flatten", 1) + row_of("features/flatten", 0)),
        "status_unknown": put("samples/status", 0, b"\xc8"),
        "provenance_garbage": notes(bytes(range(256)) * 900),
        "provenance_deep": notes(deep),
        "provenance_many": notes(b"{}\n" * (columns["provenance"].nbytes // 3)),
        "provenance_huge_number": notes(b'{"a":' + b"9" * 200_000 + b"}\n"),
        "provenance_escapes": notes(b'{"host":"\\u001b]0;owned\\u0007\\u202e","a":NaN}\n'),
    }
