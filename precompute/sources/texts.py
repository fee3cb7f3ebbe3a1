"""Texts that are in a column of a table: each row of it is a sample, and nothing else is opened.

A sample's id is the value of the id column, else the number of its row: `row/000000012`. Rows are not named by their
text, since two may have the same one. Stamps follow from the text alone. So in a table that is written again, nothing
is read but rows whose text is another than the one that had their id; and of those, what has only moved to another row
is known by its bytes and copied. Texts stay in the file, which is read again row by row, and must not change meanwhile.
"""

from __future__ import annotations

import csv
import io
import os
import threading
import weakref
from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from precompute.errors import SampleError, SourceError, reason_of
from precompute.sources.base import FileKind, Raw, Reading, Source, Table, check_stop
from precompute.sources.embedded import numbered
from precompute.sources.entries import BLOCK_ROWS, Entries, Rows
from precompute.sources.files import identity_of, mtime_ns, read_at
from precompute.sources.header import Chosen, choose
from precompute.sources.parquet import check_sizes, is_text, needed, parquet_errors, plain_type, strings_of
from precompute.sources.parquet_footer import row_groups
from precompute.sources.remote.address import absolute, is_address
from precompute.sources.text import MAX_LINE_BYTES, open_regular, text_lines

TEXT = "text"
"""What the column with the texts is called, in `Reading.columns` too."""

BLOCK_BYTES = 2**24  # of a table are in memory at once, or one row
KEPT_BYTES = 2**28  # of row groups that are kept, but for the one that was asked for last
_limit_lock, _inside, _limit_before = threading.Lock(), 0, 0  # of `long_fields`
KEPT_GROUPS = 3  # of a Parquet file; threads that read ahead are in one row group or the next


class TextsFile(ABC):
    """A table whose rows hold texts. It stays open: what is read later is of the file that was listed.

    columns: names in its header · unit: what its rows are counted in, "line" or "row".
    Once it is listed it may be sent to other processes, which open it again.
    """

    columns: list[str]
    unit: str

    def __init__(self, file: BinaryIO, path: str, shown: str) -> None:
        self.path, self.shown = path, shown
        self._stays_open(file)

    def _stays_open(self, file: BinaryIO) -> None:
        self.file, self._status = file, os.fstat(file.fileno())
        weakref.finalize(self, file.close)  # it is open for as long as anything may be read

    def __getstate__(self) -> dict[str, Any]:
        state = vars(self) | {"listed_as": self._content()}
        return {name: value for name, value in state.items() if name != "file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        listed_as = state.pop("listed_as")
        vars(self).update(state)
        self._stays_open(open_regular(self.path, self.shown))
        if self._content() != listed_as:
            raise SourceError(f"{self.shown} has changed since it was listed.", hint="Run the same command again.")

    def _content(self) -> tuple[int, int]:
        """What says whether it is the same file: its stamps, or of a copy of an object a sum of all of it."""
        if not is_address(self.path):
            return self._status.st_size, mtime_ns(self._status)
        whole = xxhash.xxh3_64()
        for start in range(0, self._status.st_size, BLOCK_BYTES):
            whole.update(read_at(self.file.fileno(), min(BLOCK_BYTES, self._status.st_size - start), start))
        return self._status.st_size, whole.intdigest()

    @abstractmethod
    def blocks(self, chosen: Chosen) -> Iterator[tuple[Rows, list[bytes]]]:
        """All rows in order, without ids where none are named, each with its texts, "" for none. Raises SourceError."""

    @abstractmethod
    def text(self, place: int) -> bytes:
        """The text of a row, counted from 0, once `blocks` is through; from any thread. Raises SampleError."""

    def read(self, place: int) -> bytes:
        """The same, unless the file has changed."""
        now = os.fstat(self.file.fileno())
        if (now.st_size, mtime_ns(now)) != (self._status.st_size, mtime_ns(self._status)):
            raise SampleError("the table has changed since it was listed", reason="UNREADABLE")
        return self.text(place)


class CsvTexts(TextsFile):
    """A .csv or .tsv file. Of each row the place of its first byte is known, and nothing else is in memory."""

    unit = "line"

    def __init__(
        self, file: BinaryIO, path: str, shown: str, records: Callable[[Any, str], Iterator[list[str]]], dialect: str
    ) -> None:
        super().__init__(file, path, shown)
        self._dialect = dialect
        self._lines = _Positioned(file)
        self._table = csv.reader(text_lines(self._lines, shown, strict=False), dialect, strict=True)
        with long_fields():
            self._rows = records(self._table, shown)
            self.columns = next(self._rows, [])
        self._starts = array("q", [self._lines.position])
        self._column = 0

    def __getstate__(self) -> dict[str, Any]:
        only_listing = ("_lines", "_table", "_rows")
        return {name: value for name, value in super().__getstate__().items() if name not in only_listing}

    def blocks(self, chosen: Chosen) -> Iterator[tuple[Rows, list[bytes]]]:
        parts = {part: place for part, place in chosen.parts.items() if part != TEXT}
        self._column = chosen.parts[TEXT]
        while block := self._block():
            numbers, rows = zip(*block, strict=True)
            columns: dict[str, Any] = {f"{part}s": [row[place] for row in rows] for part, place in parts.items()}
            further = {name: [row[place] for row in rows] for name, place in chosen.further.items()}
            yield Rows(numbers, None, **columns, further=further), [_encoded(row[self._column]) for row in rows]

    def _block(self) -> list[tuple[int, list[str]]]:
        """The next rows with the numbers of their lines, no more than some megabytes."""
        found, first = list[tuple[int, list[str]]](), self._lines.position
        with long_fields():
            for row in self._rows:
                found.append((self._table.line_num, row))
                self._starts.append(self._lines.position)
                if len(found) == BLOCK_ROWS or self._lines.position - first > BLOCK_BYTES:
                    break
        return found

    def text(self, place: int) -> bytes:
        start, end = self._starts[place], self._starts[place + 1]
        try:
            record = read_at(self.file.fileno(), end - start, start)
            lines = io.StringIO(record.decode("utf-8", "surrogateescape"), newline="\n")
            with long_fields():
                row = next(row for row in csv.reader(lines, self._dialect, strict=True) if row)
            return _encoded(row[self._column])
        except (OSError, csv.Error, StopIteration, IndexError) as error:
            raise SampleError(f"the table: {reason_of(error)}", reason="UNREADABLE") from error


class ParquetTexts(TextsFile):
    """A Parquet file. A row group is unpacked at once, equal texts in it once; the last few are kept."""

    unit = "row"

    def __init__(self, file: BinaryIO, path: str, shown: str) -> None:
        super().__init__(file, path, shown)
        self._pyarrow, self._parquet = needed(shown)
        with parquet_errors(shown):
            schema = self._parquet.ParquetFile(file).schema_arrow
            self._kinds = {str(field.name): field.type for field in schema}
            self._groups = row_groups(file, shown)
        self.columns = list(self._kinds)
        self._firsts = np.cumsum([0, *(group.rows for group in self._groups)])
        self._name = ""
        self._keep_groups()

    def _keep_groups(self) -> None:
        self._kept: OrderedDict[int, list[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        only_here = ("_pyarrow", "_parquet", "_kept", "_lock")
        return {name: value for name, value in super().__getstate__().items() if name not in only_here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pyarrow, self._parquet = needed(self.shown)
        self._keep_groups()

    def blocks(self, chosen: Chosen) -> Iterator[tuple[Rows, list[bytes]]]:
        names = {part: self.columns[place] for part, place in chosen.parts.items()}
        self._name = names.pop(TEXT)
        further = list(chosen.further)
        others = list(dict.fromkeys([*names.values(), *further]))
        kinds = {name: plain_type(self._kinds[name], name, self.shown) for name in [*others, self._name]}
        if not is_text(kinds[self._name]):
            raise SourceError(
                f"{self.shown}: the column {self._name!r} holds {self._kinds[self._name]}, not texts.",
                hint="Name the one that holds the texts: --text-column NAME.",
            )
        wanted = [*others, *([] if self._name in others else [self._name])]
        with parquet_errors(self.shown):
            check_sizes(self._groups, wanted, self.shown)
            file, first = self._parquet.ParquetFile(self.file, read_dictionary=wanted, pre_buffer=False), 1
            for batch in file.iter_batches(BLOCK_ROWS, columns=wanted):
                strings = {name: strings_of(batch.column(name), name, first, self.shown) for name in others}
                rows = Rows(
                    range(first, first + len(batch)),
                    None,
                    **{f"{part}s": strings[name] for part, name in names.items()},
                    further={name: strings[name] for name in further},
                    texts=frozenset(name for name in further if is_text(kinds[name])),
                )
                yield rows, self._texts(batch.column(self._name))
                first += len(batch)

    def text(self, place: int) -> bytes:
        group = int(np.searchsorted(self._firsts, place, side="right")) - 1
        try:
            with self._lock:
                if group not in self._kept:
                    file = self._parquet.ParquetFile(self.file, read_dictionary=[self._name], pre_buffer=False)
                    column = file.read_row_group(group, columns=[self._name], use_threads=False).column(0)
                    self._kept[group] = [text for chunk in column.chunks for text in self._texts(chunk)]
                self._kept.move_to_end(group)
                while len(self._kept) > 1 and (len(self._kept) > KEPT_GROUPS or self._kept_bytes() > KEPT_BYTES):
                    self._kept.popitem(last=False)
                return self._kept[group][place - int(self._firsts[group])]
        except (self._pyarrow.ArrowException, OSError, ValueError, IndexError) as error:
            raise SampleError(f"the table: {reason_of(error)}", reason="UNREADABLE") from error

    def _kept_bytes(self) -> int:
        return sum(self._groups[group].columns[self._name].size for group in self._kept)

    def _texts(self, column: Any) -> list[bytes]:
        """The values of an array, also of what is no UTF-8; equal ones in a dictionary are one object."""
        types, pyarrow = self._pyarrow.types, self._pyarrow
        folded = types.is_dictionary(column.type)
        values = column.dictionary if folded else column
        large = types.is_large_string(values.type) or types.is_large_binary(values.type)
        known = [
            value or b"" for value in values.cast(pyarrow.large_binary() if large else pyarrow.binary()).to_pylist()
        ]
        return [b"" if place is None else known[place] for place in column.indices.to_pylist()] if folded else known


class TextsSource(Source):
    """Texts of a table. path: of the table · places: (N,) the row of the table for each of `table`."""

    def __init__(self, path: str, file: TextsFile, table: Table, places: NDArray[np.int64]) -> None:
        self.name, self.table = file.shown, table
        self._path, self._file, self._places = path, file, places
        self._identity = None if is_address(path) else identity_of(os.fsencode(path))

    @property
    def origin(self) -> str:
        """See `Source`."""
        return absolute(self._path)

    def order(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """From the beginning of the file to its end."""
        yield rows[np.argsort(self._places[rows], kind="stable")]

    def read(self, row: int) -> Raw:
        """See `Source`."""
        data = self._file.read(int(self._places[row]))
        return Raw(data, len(data), stamp(data))

    def alive(self) -> bool:
        """See `Source`."""
        return self._identity is None or identity_of(os.fsencode(self._path)) == self._identity

    def reads(self, path: str) -> bool:
        """See `Source`."""
        return not is_address(self._path) and os.path.realpath(path) == os.path.realpath(self._path)


def open_texts(
    path: str,
    file: TextsFile,
    kind: FileKind,
    *,
    reading: Reading,
    limit: int | None,
    stop: Callable[[], int] | None,
) -> TextsSource:
    """List the texts in `file`, which is at `path`; the first `limit` of them by id. Raises SourceError and Stopped."""
    chosen = choose(file.columns, reading, file.shown, sample=TEXT)
    entries = Entries(file.shown, file.unit, ".")
    lines, sizes, stamps = array("q"), array("q"), array("q")
    for rows, texts in file.blocks(chosen):
        check_stop(stop, f"{file.shown} was being listed, with {len(sizes):,} {kind.plural} found")
        ids = rows.ids or numbered("", len(sizes), len(texts))
        entries.add(Rows(rows.numbers, None, ids, rows.labels, rows.splits, further=rows.further, texts=rows.texts))
        lines.extend(rows.numbers)
        sizes.extend(map(len, texts))
        stamps.extend(map(stamp, texts))
    listed = entries.listed(kind, limit)
    places = np.searchsorted(np.array(lines), listed.numbers)
    table = listed.table
    table.sizes[:], table.mtimes[:] = np.array(sizes)[places], np.array(stamps)[places]
    return TextsSource(path, file, table, places)


def holds_texts(columns: Sequence[str], kind: FileKind, reading: Reading, shown: str) -> bool:
    """Whether a table with these columns is read for the texts in one of them, not for paths of files.

    Raises SourceError where it could be neither.
    """
    if TEXT in reading.columns or "path" in reading.columns:
        return TEXT in reading.columns
    if kind.column in columns or "path" in columns:
        return kind.column in columns
    choose(columns, reading, shown, sample=TEXT)  # which says what there is
    return True


def stamp(text: bytes) -> int:
    """63 bits that follow from the text."""
    return xxhash.xxh3_64_intdigest(text) >> 1


@contextmanager
def long_fields() -> Iterator[None]:
    """Fields may be as long as lines, within. Python's limit of 131,072 letters is one for the whole program.

    So it is raised while any thread is inside, and is what it was before once the last one has left. No thread of these
    finds the lower limit; another reader of the program takes longer fields meanwhile.
    """
    global _inside, _limit_before  # noqa: PLW0603 - as the limit is
    with _limit_lock:
        if not _inside:
            _limit_before = csv.field_size_limit(MAX_LINE_BYTES)
        _inside += 1
    try:
        yield
    finally:
        with _limit_lock:
            _inside -= 1
            if not _inside:
                csv.field_size_limit(_limit_before)


def _encoded(field: str) -> bytes:
    """The bytes of a field, also of what is no UTF-8."""
    return field.encode("utf-8", "surrogateescape")


class _Positioned:
    """A file that says how many bytes its lines were."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.position = file, 0

    def readline(self, most: int) -> bytes:
        """See `io.BufferedIOBase`."""
        line = self._file.readline(most)
        self.position += len(line)
        return line
