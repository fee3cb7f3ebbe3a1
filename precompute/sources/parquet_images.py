"""Images in the rows of a Parquet file, as the hub has them. A row group is unpacked at once; the last few are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import SampleError, SourceError, reason_of
from precompute.sources.data_files import Block, DataFile, ImageColumn, Picture
from precompute.sources.entries import BLOCK_ROWS
from precompute.sources.parquet import MAX_CHUNK_BYTES, check_names, check_sizes, needed, parquet_errors, strings_of
from precompute.sources.parquet_footer import row_groups

KEPT_GROUPS = 3  # threads that read ahead are in one group or the next
KEPT_BYTES = MAX_CHUNK_BYTES  # of all of them, but for the one that was asked for last
UNFOLDED_BYTES = 2**28  # of the paths that are unpacked at once


class _Pending:
    """Rows of one or more batches, which may be small, until they are a block. first: number of the first, from 1."""

    def __init__(self, names: list[str], *, with_paths: bool) -> None:
        self._names, self._with_paths = names, with_paths
        self.first, self.rows = 1, 0
        self._clear()

    def taken(self) -> Iterator[Block]:
        """What there is as a block, after which there is nothing."""
        if self.rows:
            yield Block(self.rows, self.paths if self._with_paths else None, self.columns)
        self.first, self.rows = self.first + self.rows, 0
        self._clear()

    def _clear(self) -> None:
        self.paths = list[str]()
        self.columns: dict[str, list[str]] = {name: [] for name in self._names}


class KeptGroups:
    """The last few row groups that were unpacked, of all files of a source together."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[str, int], list[Picture]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._groups)

    def __reduce__(self) -> tuple[Any, ...]:
        return (KeptGroups, ())  # another process keeps its own

    def get(self, path: str, group: int) -> list[Picture] | None:
        """The images of a group; None where it is no longer there."""
        with self._lock:
            pictures = self._groups.get((path, group))
            if pictures is not None:
                self._groups.move_to_end((path, group))
            return pictures

    def put(self, path: str, group: int, pictures: list[Picture]) -> None:
        """Keep a group, instead of those that were requested longest ago."""
        with self._lock:
            self._groups[path, group] = pictures
            sizes = {place: sum(len(one.data or b"") for one in kept) for place, kept in self._groups.items()}
            while len(self._groups) > 1 and (len(self._groups) > KEPT_GROUPS or sum(sizes.values()) > KEPT_BYTES):
                oldest, _ = self._groups.popitem(last=False)
                del sizes[oldest]


class ParquetImages(DataFile):
    """See `DataFile`. kept: of all files of the source. Raises SourceError for what is no Parquet file, and without
    pyarrow."""

    def __init__(self, path: str, shown: str, kept: KeptGroups) -> None:
        super().__init__(path, shown)
        self._needs()
        with self.opened() as raw, parquet_errors(shown):
            file = self._parquet.ParquetFile(raw)
            self.schema, self._metadata = file.schema_arrow, file.metadata
            check_names(self.schema)
            self._groups = row_groups(raw, shown)
        self._firsts = np.cumsum([0, *(group.rows for group in self._groups)])
        self.rows = int(self._firsts[-1])
        if self.rows > self.status.st_size or min(self._firsts) < 0:
            raise SourceError(
                f"{shown} claims {self.rows:,} rows in {self.status.st_size:,} bytes.", hint="Write it again."
            )
        self._image = ImageColumn("", False, False)
        self._whole = np.zeros(len(self._groups), dtype=bool)  # groups of which each row has bytes
        self._kept = kept
        self._locks = [threading.Lock() for _ in self._groups]

    def _needs(self) -> None:
        self._pyarrow, self._parquet = needed(self.shown)

    def __getstate__(self) -> dict[str, Any]:
        only_here = ("_pyarrow", "_parquet", "_locks")
        return {name: value for name, value in vars(self).items() if name not in only_here}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._needs()
        self._locks = [threading.Lock() for _ in self._groups]

    def blocks(self, image: ImageColumn, names: list[str], *, with_paths: bool) -> Iterator[Block]:
        """See `DataFile`."""
        from pyarrow import compute

        self._look_at(image)
        paths = f"{image.name}.path" if with_paths and image.has_path else None
        wanted = [*names, *([paths] if paths else [])]
        if not wanted:
            for first in range(0, self.rows, BLOCK_ROWS):
                yield Block(min(BLOCK_ROWS, self.rows - first), None, {})
            return
        with self.opened() as raw, parquet_errors(self.shown):
            check_sizes(self._groups, wanted, self.shown)
            file = self._parquet.ParquetFile(raw, read_dictionary=names, pre_buffer=False)
            pending = _Pending(names, with_paths=paths is not None)
            for group in range(len(self._groups)):
                rows = self._rows_at_once(group, paths)
                for batch in file.iter_batches(rows, row_groups=[group], columns=wanted):
                    first = pending.first + pending.rows
                    pending.rows += len(batch)
                    for name in names:
                        pending.columns[name] += strings_of(batch.column(name), name, first, self.shown)
                    if paths:
                        inside = compute.struct_field(batch.column(image.name), "path")
                        pending.paths += strings_of(inside, paths, first, self.shown)
                    if pending.rows >= BLOCK_ROWS:
                        yield from pending.taken()
            yield from pending.taken()

    def _rows_at_once(self, group: int, paths: str | None) -> int:
        """So many that paths fit into memory if all of them are the longest there can be: inside of a struct they
        cannot stay in a dictionary until their lengths are known, and a short file may repeat one long value."""
        chunk = self._groups[group].columns.get(paths or "")
        return max(1, min(BLOCK_ROWS, UNFOLDED_BYTES // max(1, chunk.size if chunk else 0)))

    def embedded(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """See `DataFile`. Known from the statistics of a row group, where they say that no bytes are missing."""
        return self._whole[np.searchsorted(self._firsts, rows, side="right") - 1]

    def read(self, row: int) -> Picture:
        """See `DataFile`."""
        group = int(np.searchsorted(self._firsts, row, side="right")) - 1
        place = row - int(self._firsts[group])
        with self._locks[group]:
            pictures = self._kept.get(self.path, group)
            if pictures is None:
                pictures = self._unpacked(group)
                self._kept.put(self.path, group, pictures)
        return pictures[place]

    def _look_at(self, image: ImageColumn) -> None:
        """Note the column of images. Raises SourceError where a row group is too large to be unpacked at once."""
        self._image = image
        leaf = f"{image.name}.bytes" if image.is_struct else image.name
        check_sizes(self._groups, [leaf], self.shown)
        self._whole[:] = [leaf in group.columns and group.columns[leaf].nulls == 0 for group in self._groups]

    def _unpacked(self, group: int) -> list[Picture]:
        """The images of a row group. Raises SampleError."""
        name, found, total = self._image.name, list[Picture](), 0
        try:
            with self.sample_file() as raw:
                file = self._parquet.ParquetFile(raw, metadata=self._metadata, pre_buffer=False)
                # One by one: a short file may repeat one long value, and must not fill the memory
                for batch in file.iter_batches(1, row_groups=[group], columns=[name], use_threads=False):
                    value = batch.column(0)[0].as_py()
                    value = value if self._image.is_struct else {"bytes": value}
                    value = value or {}
                    path = value.get("path")
                    picture = Picture(value.get("bytes"), None if path is None else path.encode())
                    found.append(picture)
                    total += len(picture.data or b"") + len(picture.path or b"")
                    if total > MAX_CHUNK_BYTES:
                        raise SampleError(f"a row group of more than {MAX_CHUNK_BYTES:,} bytes", reason="UNREADABLE")
        except (self._pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            raise SampleError(f"the data file: {reason_of(error)}", reason="UNREADABLE") from error
        if len(found) != int(self._firsts[group + 1] - self._firsts[group]):
            raise SampleError("the data file has fewer rows than it says", reason="UNREADABLE")
        return found
