"""The zip archive of a .pth file, read without torch, in the one form in which every reader finds the same in it.

torch.load gets a file only after its pickle was looked at, so what is looked at must be what torch then finds. Readers
of zip files differ over odd archives: of two records whose names differ in case, `zipfile` shows one and torch loads
the other (tried; it is in the hostile set). torch.save writes nothing odd, so what is odd is refused. The reader inside
torch would see what torch sees, but it is private, and what it offers changes from release to release.
"""

from __future__ import annotations

import os
import struct
from typing import IO, NamedTuple

END = struct.Struct("<4s4H2LH")
LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
ENTRY = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
MAX_DIRECTORY_BYTES = 8 * 2**20
"""Of the directory of all records: 0.1 MiB for 1000 tensors."""


class Record(NamedTuple):
    """offset: of its local header · length: unpacked, in bytes."""

    offset: int
    length: int
    compressed: bool


def read_pickle(file: IO[bytes], limit: int) -> bytes:
    """The record `data.pkl` of the archive `file`, which describes its tensors.

    Raises ValueError where the archive is damaged or ambiguous, has a compressed record, claims more than its size, or
    where the record has more than `limit` bytes.
    """
    size = os.fstat(file.fileno()).st_size
    start, count, data = _directory(file, size)
    records: dict[bytes, Record] = {}
    folder, place = b"", 0
    for _ in range(count):
        name, record, place = _entry(data, place)
        folder = folder or name.partition(b"/")[0]  # the first record says in which folder all of them lie
        records[name] = record
    if place != len(data) or len(records) != count:
        raise ValueError("its zip archive is damaged, or has two records of one name")
    if folder + b"/constants.pkl" in records:
        raise ValueError("it is a TorchScript archive, which contains code")
    claimed = sum(record.length for record in records.values())
    if claimed > size or any(record.compressed for record in records.values()):  # torch.save never compresses
        raise ValueError(f"it is compressed, or its records overlap: it would take {claimed:,} bytes")
    pickle = records.get(folder + b"/data.pkl")
    if pickle is None:
        raise ValueError("it is a zip archive, but none that torch.save has made: it has no data.pkl")
    if pickle.length > limit:
        raise ValueError(f"its pickle has {pickle.length:,} bytes, more than the limit of {limit:,}")
    return _content(file, pickle, start)


def _directory(file: IO[bytes], size: int) -> tuple[int, int, bytes]:
    """Where the directory begins, its number of records, and its bytes."""
    tail_start = max(0, size - END.size - LOCATOR.size - END64.size)
    file.seek(tail_start)
    tail = file.read(size - tail_start)
    damaged = ValueError("its zip archive is truncated, or is followed by something else")
    if len(tail) < END.size or not tail.endswith(b"\0\0"):
        raise damaged
    signature, disk, first_disk, here, count, length, start, _ = END.unpack(tail[-END.size :])
    if signature != b"PK\5\6":
        raise damaged
    end = size - END.size
    if tail[-END.size - LOCATOR.size :].startswith(b"PK\6\7"):
        end -= LOCATOR.size + END64.size
        locator = LOCATOR.unpack(tail[-END.size - LOCATOR.size : -END.size])
        if len(tail) < END.size + LOCATOR.size + END64.size or locator != (b"PK\6\7", 0, end, 1):
            raise damaged
        found = END64.unpack(tail[: END64.size])
        narrow = (disk, first_disk, here, count, length, start)
        if found[:2] != (b"PK\6\6", END64.size - 12) or not _same(narrow, found[4:]):
            raise damaged
        disk, first_disk, here, count, length, start = found[4:]
    if (disk, first_disk, here) != (0, 0, count) or start + length != end:
        raise damaged
    if length > MAX_DIRECTORY_BYTES:
        raise ValueError(f"its directory has {length:,} bytes, more than the limit of {MAX_DIRECTORY_BYTES:,}")
    file.seek(start)
    return start, count, file.read(length)


def _same(narrow: tuple[int, ...], wide: tuple[int, ...]) -> bool:
    """Whether each number of the older end record is that of the newer one, or says that it does not fit."""
    limits = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    return all(old in (new, limit) for old, new, limit in zip(narrow, wide, limits, strict=True))


def _entry(data: bytes, place: int) -> tuple[bytes, Record, int]:
    """(name in lower case, record, where the next entry begins) of the entry that begins at `place`."""
    if len(data) - place < ENTRY.size:
        raise ValueError("the directory of its zip archive is damaged")
    fields = ENTRY.unpack_from(data, place)
    signature, flags, method = fields[0], fields[3], fields[4]
    packed, length, name_bytes, extra_bytes, comment_bytes = fields[8:13]
    name_end = place + ENTRY.size + name_bytes
    name, extra = data[place + ENTRY.size : name_end], data[name_end : name_end + extra_bytes]
    length, packed, offset = _wide(extra, (length, packed, fields[16]))
    if signature != b"PK\1\2" or flags & 1 or b"\0" in name:
        raise ValueError("the directory of its zip archive is damaged")
    record = Record(offset, length, compressed=method != 0 or packed != length)
    return name.lower(), record, name_end + extra_bytes + comment_bytes  # torch looks names up in any case


def _wide(extra: bytes, narrow: tuple[int, ...]) -> tuple[int, ...]:
    """Length, packed length and offset of an entry: those that do not fit in 32 bits are in its extra field."""
    blocks = []
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            blocks.append(extra[4 : 4 + length])
        extra = extra[4 + length :]
    missing = [place for place, value in enumerate(narrow) if value == 0xFFFFFFFF]
    if not missing:
        return narrow
    if len(blocks) != 1 or len(blocks[0]) < 8 * len(missing):
        raise ValueError("the directory of its zip archive is damaged")
    values = list(narrow)
    for number, place in enumerate(missing):
        (values[place],) = struct.unpack_from("<Q", blocks[0], 8 * number)
    return tuple(values)


def _content(file: IO[bytes], record: Record, end: int) -> bytes:
    """The bytes of a record, which is in front of the directory at `end`."""
    file.seek(record.offset)
    header = file.read(LOCAL.size)
    if len(header) < LOCAL.size or not header.startswith(b"PK\3\4"):
        raise ValueError("a record of its zip archive is damaged")
    start = record.offset + LOCAL.size + sum(LOCAL.unpack(header)[-2:])
    if start + record.length > end:
        raise ValueError("a record of its zip archive is truncated")
    file.seek(start)
    return file.read(record.length)
