"""Images in an Arrow stream, the files that Hugging Face's datasets writes: found by their offsets, read with `pread`.

Of a record batch only the buffers that are requested are read; image data are not, until a row is. So a file of any
size takes little memory, and one that is truncated while it is read is an error (a memory map would end the process).
Buffers are located by the flatbuffers in front of each batch, in which nothing is believed before it is compared
with the size of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import SampleError, SourceError, reason_of
from precompute.sources.data_files import Block, DataFile, ImageColumn, Picture
from precompute.sources.entries import BLOCK_ROWS, MAX_STRING_BYTES
from precompute.sources.files import MAX_FILE_BYTES, read_at
from precompute.sources.parquet import MAX_CHUNK_BYTES, check_names, needed, strings_of

MAGIC = b"ARROW1\0\0"  # in front of the stream where the file also has a footer
CONTINUATION = 0xFFFFFFFF
MAX_HEAD_BYTES = 64 * 2**20  # of one message's metadata; class names stand in the first
SCHEMA, DICTIONARIES, RECORDS = 1, 2, 3  # kinds of messages
HINT = "Write it again with Dataset.save_to_disk."


class Damage(Exception):
    """What is wrong with a file, in words; becomes a SourceError with its name."""


@dataclass(frozen=True)
class Batch:
    """A record batch: its rows, and where its buffers are in the file, as (first byte, bytes)."""

    rows: int
    buffers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Spans:
    """Where each of n values is in the file. starts, sizes: (n,) int64 · there: (n,) bool, False for null."""

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    there: NDArray[np.bool_]


class ArrowImages(DataFile):
    """See `DataFile`. Raises SourceError for a file that is damaged, or of a form that is not read."""

    def __init__(self, path: str, shown: str) -> None:
        super().__init__(path, shown)
        needed(shown)
        self._batches: list[Batch] = []
        self._bytes = self._paths = _nothing(0)
        with self.opened() as file:
            try:
                self.schema = self._scan(file.fileno(), self.status.st_size)
            except Damage as damage:
                raise self._wrong(str(damage)) from damage
            except (struct.error, UnicodeDecodeError) as error:
                raise self._wrong("is damaged, and no stream of Arrow record batches") from error
        self.rows = sum(batch.rows for batch in self._batches)

    def blocks(self, image: ImageColumn, names: list[str], *, with_paths: bool) -> Iterator[Block]:
        """See `DataFile`."""
        images, paths = [], []
        with self.opened() as file:
            try:
                for batch in self._batches:
                    inside = _Inside(file.fileno(), self.schema, batch)
                    images.append(inside.spans(image.name, "bytes" if image.is_struct else None))
                    paths.append(inside.spans(image.name, "path") if image.has_path else _nothing(batch.rows))
                    columns = {name: inside.array(name) for name in names}
                    texts = inside.array(image.name, "path") if with_paths and image.has_path else None
                    for first in range(0, batch.rows, BLOCK_ROWS):
                        rows = slice(first, min(first + BLOCK_ROWS, batch.rows))
                        yield Block(
                            rows.stop - first,
                            None if texts is None else self._strings(texts, "path", first, rows),
                            {name: self._strings(column, name, first, rows) for name, column in columns.items()},
                        )
            except Damage as damage:
                raise self._wrong(str(damage)) from damage
        self._bytes, self._paths = _joined(images), _joined(paths)

    def sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `DataFile`."""
        return np.where(self._bytes.there[rows], self._bytes.sizes[rows], 0)

    def embedded(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `DataFile`."""
        return self._bytes.there[rows]

    def read(self, row: int) -> Picture:
        """See `DataFile`."""
        for spans, limit, is_image in ((self._bytes, MAX_FILE_BYTES, True), (self._paths, MAX_STRING_BYTES, False)):
            if not spans.there[row]:
                continue
            size = int(spans.sizes[row])
            if size > limit:
                raise SampleError(f"{size:,} bytes, more than {limit:,}", reason="UNREADABLE")
            with self.sample_file() as file:
                data = read_at(file.fileno(), size, int(spans.starts[row]))
            if len(data) < size:
                raise SampleError("the data file has become shorter", reason="UNREADABLE")
            return Picture(data, None) if is_image else Picture(None, data)
        return Picture(None, None)

    def _strings(self, column: Any, name: str, first: int, rows: slice) -> list[str]:
        return strings_of(column.slice(rows.start, rows.stop - rows.start), name, first + 1, self.shown)

    def _wrong(self, what: str) -> SourceError:
        return SourceError(f"{self.shown} {what}.", hint=HINT)

    def _scan(self, descriptor: int, size: int) -> Any:
        """Find all batches. Returns the schema."""
        import pyarrow

        place = len(MAGIC) if read_at(descriptor, len(MAGIC), 0) == MAGIC else 0
        schema, kinds = None, 0
        while place < size:
            head = read_at(descriptor, 8, place)
            if len(head) < 8 or head[:4] != struct.pack("<I", CONTINUATION):
                raise Damage(f"is damaged at byte {place:,}: no Arrow message begins there")
            (length,) = struct.unpack("<i", head[4:])
            if length == 0 and schema is not None:
                return schema
            if not 0 < length <= min(MAX_HEAD_BYTES, size - place - 8):
                raise Damage(f"is truncated or damaged at byte {place:,}")
            message = read_at(descriptor, length, place + 8)
            kind, header, body = _message(message)
            start = place + 8 + length
            if not 0 <= body <= size - start:
                raise Damage(f"is truncated at byte {size:,}, within a record batch of {body:,} bytes")
            if schema is None:
                if kind != SCHEMA:
                    raise Damage("does not begin with a schema")
                try:
                    schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(head + message))
                    check_names(schema)
                except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                    raise Damage(f"has no schema that can be read: {reason_of(error)}") from error
                kinds = sum(_buffers_of(field.type) for field in schema)
            elif kind == DICTIONARIES:
                raise Damage("has columns of dictionaries, which are not read")
            elif kind == RECORDS:
                self._batches.append(_batch(message, header, start, body, kinds))
            else:
                raise Damage(f"has a message of the kind {kind} at byte {place:,}, which is not an Arrow type")
            place = start + -(-body // 8) * 8
        raise Damage(
            "is empty, or no Arrow file" if schema is None else "is truncated: it ends without a mark of its end"
        )


class _Inside:
    """Columns of one batch in an open file."""

    def __init__(self, descriptor: int, schema: Any, batch: Batch) -> None:
        self._descriptor, self._schema, self._batch = descriptor, schema, batch

    def array(self, name: str, child: str | None = None) -> Any:
        """A column without children as an array of pyarrow's, checked. Raises Damage."""
        import pyarrow

        kind, first = self._place(name, child)
        buffers = [
            pyarrow.py_buffer(self._content(first + number)) if number or self._size(first) else None
            for number in range(_buffers_of(kind))
        ]
        if pyarrow.types.is_null(kind):
            return pyarrow.nulls(self._batch.rows)
        try:
            array = pyarrow.Array.from_buffers(kind, self._batch.rows, buffers)
            array.validate(full=True)
        except (pyarrow.ArrowException, ValueError) as error:
            raise Damage(f"is damaged in the column {name!r}: {reason_of(error)}") from error
        return array

    def spans(self, name: str, child: str | None) -> Spans:
        """Where the values of a column of bytes or text lie. Raises Damage."""
        import pyarrow

        kind, first = self._place(name, child)
        rows = self._batch.rows
        is_large = pyarrow.types.is_large_binary(kind) or pyarrow.types.is_large_string(kind)
        width = np.dtype("<i8" if is_large else "<i4")
        content = self._content(first + 1)
        if len(content) < width.itemsize * (rows + 1):
            if rows == 0:
                return _nothing(0)
            raise Damage(f"is damaged: a column claims {rows:,} rows in {len(content):,} bytes of offsets")
        offsets = np.frombuffer(content, width, rows + 1).astype(np.int64)
        start, size = self._batch.buffers[first + 2]
        sizes = np.diff(offsets)
        if offsets[0] < 0 or offsets[-1] > size or (sizes < 0).any():
            raise Damage(f"is damaged: offsets in the column {name!r} lead out of its {size:,} bytes")
        there = self._valid(first)
        if child is not None:
            there &= self._valid(self._place(name, None)[1])
        return Spans(start + offsets[:-1], sizes, there)

    def _valid(self, buffer: int) -> NDArray[np.bool_]:
        rows = self._batch.rows
        if not self._size(buffer):
            return np.ones(rows, dtype=bool)
        bits = np.frombuffer(self._content(buffer), np.uint8)
        if len(bits) * 8 < rows:
            raise Damage(f"is damaged: {rows:,} rows have {len(bits):,} bytes of validity")
        return np.unpackbits(bits, count=rows, bitorder="little").astype(bool)

    def _place(self, name: str, child: str | None) -> tuple[Any, int]:
        """Type and first buffer of a column, or of a struct's child."""
        first, fields = 0, list(self._schema)
        for field in fields:
            if field.name == name:
                break
            first += _buffers_of(field.type)
        kind = self._schema.field(name).type
        if child is None:
            return kind, first
        first += 1
        for inner in (kind.field(number) for number in range(kind.num_fields)):
            if inner.name == child:
                return inner.type, first
            first += _buffers_of(inner.type)
        raise Damage(f"has no {child!r} in the column {name!r}")

    def _size(self, buffer: int) -> int:
        return self._batch.buffers[buffer][1]

    def _content(self, buffer: int) -> bytes:
        start, size = self._batch.buffers[buffer]
        if size > MAX_CHUNK_BYTES:
            raise Damage(f"has a column of {size:,} bytes in one batch, more than {MAX_CHUNK_BYTES:,}")
        content = read_at(self._descriptor, size, start)
        if len(content) < size:
            raise Damage("is truncated")
        return content


def _nothing(rows: int) -> Spans:
    starts, sizes = np.zeros((2, rows), np.int64)
    return Spans(starts, sizes, np.zeros(rows, dtype=bool))


def _joined(parts: list[Spans]) -> Spans:
    parts = parts or [_nothing(0)]
    starts, sizes = (np.concatenate([getattr(part, name) for part in parts]) for name in ("starts", "sizes"))
    return Spans(starts, sizes, np.concatenate([part.there for part in parts]))


def _buffers_of(kind: Any) -> int:
    """How many buffers a column of this type has in a record batch. Raises Damage for types that are not read."""
    from pyarrow import types

    if (storage := getattr(kind, "storage_type", None)) is not None:  # an extension's
        return _buffers_of(storage)
    if types.is_null(kind):
        return 0
    views = ("string_view", "binary_view", "list_view", "large_list_view")  # not in each release of pyarrow
    refused = ("dictionary", "union", "run_end_encoded", *(name for name in views if hasattr(types, f"is_{name}")))
    if any(getattr(types, f"is_{name}")(kind) for name in refused):
        raise Damage(f"has a column of the type {kind}, which is not read")
    if types.is_nested(kind):
        own = 1 if types.is_struct(kind) or types.is_fixed_size_list(kind) else 2
        return own + sum(_buffers_of(kind.field(number).type) for number in range(kind.num_fields))
    return int(kind.num_buffers)


def _message(data: bytes) -> tuple[int, int, int]:
    """Kind, place of the header's table, and bytes of the body, of a flatbuffer `Message`."""
    (root,) = struct.unpack_from("<I", data)
    kind, header, body = (_field(data, root, number) for number in (1, 2, 3))  # 0 is the version
    if not (kind and header):
        raise Damage("is damaged: a message without a header")
    (place,) = struct.unpack_from("<I", data, header)
    length = struct.unpack_from("<q", data, body)[0] if body else 0
    return struct.unpack_from("<B", data, kind)[0], header + place, length


def _batch(data: bytes, table: int, start: int, body: int, kinds: int) -> Batch:
    """A flatbuffer `RecordBatch`, whose body of `body` bytes begins at byte `start` of the file."""
    length, buffers, compression = (_field(data, table, number) for number in (0, 2, 3))
    if compression:
        raise Damage("is compressed, so that no row can be read on its own")
    rows = struct.unpack_from("<q", data, length)[0] if length else 0
    count, place = 0, 0
    if buffers:
        place = buffers + struct.unpack_from("<I", data, buffers)[0]
        (count,) = struct.unpack_from("<I", data, place)
    if count != kinds:
        raise Damage(f"is damaged: a record batch with {count:,} buffers instead of {kinds:,}")
    values = struct.unpack_from(f"<{2 * count}q", data, place + 4)
    pairs = tuple(zip(values[::2], values[1::2], strict=True))
    if rows < 0 or any(offset < 0 or size < 0 or offset + size > body for offset, size in pairs):
        raise Damage("is damaged: a record batch with buffers outside of it")
    return Batch(rows, tuple((start + offset, size) for offset, size in pairs))


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table lies; 0 where it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:
        raise Damage("is damaged: a message with parts outside of it")
    (size,) = struct.unpack_from("<H", data, vtable)
    slot = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + slot)[0] if slot + 2 <= size else 0
    return table + offset if offset else 0
