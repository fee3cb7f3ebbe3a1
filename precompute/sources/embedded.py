"""Images that lie as bytes in the rows of Arrow and Parquet files, as in the data sets of Hugging Face.

A sample's id is the value of `--id-column`, else the `path` that is stored with each image where those are all there
and different, else the number of its row. Ids of a data set with splits begin with the split: `train/ant.jpg`,
`train/000000012`. An image without bytes is the file that its path names, below the folder of the data set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from precompute.errors import SampleError, SourceError
from precompute.sources.base import FileKind, Raw, Reading, Source, Table, ascii_name, check_stop
from precompute.sources.data_files import Block, DataFile, Part
from precompute.sources.embedded_columns import class_names, columns_of, kind_of, label_columns
from precompute.sources.entries import MAX_STRING_BYTES, Entries, Rows
from precompute.sources.files import read_file
from precompute.sources.labels import splits_in_names
from precompute.sources.parquet import is_text


class EmbeddedImages(Source):
    """Images in the rows of `files`.

    roots: folders in which an image that is named by its path alone must lie, the first that its path is relative to
    · which: (N,) index into `files` · rows: (N,) row in that file.
    """

    def __init__(
        self,
        name: str,
        origin: str,
        table: Table,
        files: tuple[DataFile, ...],
        *,
        roots: tuple[str, ...],
        which: NDArray[np.int64],
        rows: NDArray[np.int64],
        extensions: frozenset[bytes],
        notes: tuple[str, ...],
    ) -> None:
        self.name, self.table, self.notes = name, table, notes
        self._origin, self._files, self._roots = origin, files, roots
        self._which, self._rows, self._extensions = which, rows, extensions

    @property
    def origin(self) -> str:
        """See `Source`."""
        return self._origin

    def order(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """File by file, each from its beginning to its end."""
        rows = rows[np.lexsort((self._rows[rows], self._which[rows]))]
        yield from np.split(rows, np.flatnonzero(np.diff(self._which[rows])) + 1)

    def read(self, row: int) -> Raw:
        """See `Source`."""
        picture = self._files[self._which[row]].read(int(self._rows[row]))
        data = picture.data
        if data is None and picture.path:
            data = read_file(self._inside(picture.path)).data
        if data is None:
            raise SampleError("the row holds no image", reason="UNREADABLE")
        return Raw(data, int(self.table.sizes[row]), int(self.table.mtimes[row]))

    def alive(self) -> bool:
        """See `Source`."""
        return any(os.path.exists(file.path) for file in self._files)

    def reads(self, path: str) -> bool:
        """See `Source`."""
        folder, name = os.path.split(path)
        whole = os.path.join(os.path.realpath(folder), name)
        there = os.path.realpath(path)
        if any(os.path.realpath(file.path) in (whole, there) for file in self._files):
            return True
        is_image = os.path.splitext(os.fsencode(name))[1].lower() in self._extensions
        return is_image and any(_is_below(there, root) for root in self._roots)

    def _inside(self, path: bytes) -> bytes:
        """The file that `path` names. Raises SampleError where it, or a link in it, leads out of all roots."""
        if b"\0" in path:
            raise SampleError("its path holds NUL", reason="UNREADABLE")
        whole = os.path.join(self._roots[0], os.fsdecode(path))
        if not any(_is_below(os.path.realpath(whole), root) for root in self._roots):
            raise SampleError(f"its path leads out of {ascii_name(self._roots[0])}", reason="UNREADABLE")
        return os.fsencode(whole)


def open_parts(
    name: str,
    parts: Sequence[Part],
    kind: FileKind,
    *,
    reading: Reading,
    limit: int | None,
    stop: Callable[[], int] | None,
    roots: tuple[str, ...],
    origin: str,
) -> EmbeddedImages:
    """List the images of `parts`; the first `limit` of them by id. Raises SourceError, with the row; Stopped."""
    listing = _Listing(ascii_name(name), parts, reading, stop)
    with_paths = listing.paths_are_ids()
    entries = Entries(listing.shown, "row", ".")
    listing.add_to(entries, with_paths=with_paths)
    listed = entries.listed(kind, limit)
    files = tuple(file for part in parts for file in part.files)
    firsts = np.cumsum([0, *(file.rows for file in files)])
    places = listed.numbers - 1
    which = np.searchsorted(firsts, places, side="right") - 1
    rows = places - firsts[which]
    notes = listing.notes
    if not (with_paths or "id" in reading.columns):
        notes += ("ids are row numbers: the images do not have unique paths",)
    return EmbeddedImages(
        listing.shown, origin, _stamped(listed.table, files, which, rows), files,
        roots=roots, which=which, rows=rows, extensions=kind.extensions, notes=notes,
    )  # fmt: skip


class _Listing:
    """The rows of all parts, as entries of a table."""

    def __init__(self, shown: str, parts: Sequence[Part], reading: Reading, stop: Callable[[], int] | None) -> None:
        self.shown = shown
        self._parts, self._reading, self._stop = parts, reading, stop
        codes, notes = splits_in_names([os.fsencode(part.word) for part in parts])
        self._has_splits = bool(codes.any())
        self.notes = (*notes, *self._open_choice())

    def _open_choice(self) -> Iterator[str]:
        """A note where several columns may be the labels, and none is named."""
        files = ((part, file) for part in self._parts for file in part.files)
        names = next((label_columns(part, file) for part, file in files), [])
        if len(names) > 1 and "label" not in self._reading.columns:
            yield f"no labels: {', '.join(map(ascii_name, names))} are columns of classes; see --label-column"

    def paths_are_ids(self) -> bool:
        """Whether each image has its own path, that may be an id; False where it does not matter."""
        if "id" in self._reading.columns:
            return False
        hashes: list[NDArray[np.uint64]] = []
        for part in self._parts:
            for file in part.files:
                image = columns_of(part, file, self._reading, has_splits=self._has_splits).image
                for block in file.blocks(image, [], with_paths=True) if image.has_path else ():
                    self._ask_to_stop()
                    if block.paths is None or not all(map(_may_be_id, block.paths)):
                        return False
                    names = [xxhash.xxh3_64_intdigest(f"{part.word}/{path}".encode()) for path in block.paths]
                    hashes.append(np.array(names, dtype=np.uint64))
                if not image.has_path:
                    return False
        found = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
        return len(np.unique(found)) == len(found)

    def add_to(self, entries: Entries, *, with_paths: bool) -> None:
        """Add all rows, numbered from 1 over all files, in messages; their ids are numbered from 0 in each part."""
        number = 1
        for part in self._parts:
            first = number
            for file in part.files:
                columns = columns_of(part, file, self._reading, has_splits=self._has_splits)
                classes = {name: names for name in columns.names if (names := class_names(part, file, name))}
                texts = frozenset(name for name in columns.names if name in classes or is_text(kind_of(file, name)))
                for block in file.blocks(columns.image, columns.names, with_paths=with_paths):
                    self._ask_to_stop()
                    values = dict(block.columns)
                    for name, names in classes.items():
                        values[name] = self._named(values[name], name, names, number)
                    held = {part: values[name] for part, name in columns.parts.items()}
                    word = part.word if self._has_splits else ""
                    entries.add(
                        Rows(
                            range(number, number + block.rows),
                            None,
                            ids=held.get("id") or _ids(part, block, number - first),
                            labels=held.get("label", [""] * block.rows),
                            splits=held.get("split", [word] * block.rows),
                            further={name: values[name] for name in columns.further},
                            texts=texts,
                        )
                    )
                    number += block.rows

    def _named(self, values: Sequence[str], name: str, names: Sequence[str], first: int) -> list[str]:
        """Class names for numbers of classes; "" for -1, which stands for none. first: number of the first row."""
        known = {"": "", "-1": "", **{str(code): label for code, label in enumerate(names)}}
        try:
            return [known[value] for value in values]
        except KeyError as error:
            row = first + next(place for place, value in enumerate(values) if value not in known)
            raise SourceError(
                f"{self.shown}, row {row:,} has the class {error.args[0]} in {name!r}, which has {len(names):,} names.",
                hint="Its description of the classes belongs to other data. Write the data set again.",
            ) from error

    def _ask_to_stop(self) -> None:
        check_stop(self._stop, f"{self.shown} was being listed")


def _ids(part: Part, block: Block, first: int) -> list[str]:
    """Ids of a block whose first row is `first` in its part."""
    if block.paths is not None:
        return [f"{part.word}/{path}" for path in block.paths] if part.word else list(block.paths)
    return numbered(part.word, first, block.rows)


def numbered(word: str, first: int, rows: int) -> list[str]:
    """`train/000000012`: as wide for few rows as for many, so that adding some renames none."""
    return [f"{word or 'row'}/{row:09d}" for row in range(first, first + rows)]


def _may_be_id(path: str) -> bool:
    """An absolute path is of one machine, or of the cache of a library."""
    return path[:1] not in ("", "/") and "\0" not in path and len(path.encode()) <= MAX_STRING_BYTES


def _is_below(path: str, root: str) -> bool:
    """Whether `path`, without links, is in the folder `root`."""
    return path.startswith(os.path.join(os.path.realpath(root), ""))


def _stamped(table: Table, files: Sequence[DataFile], which: NDArray[np.int64], rows: NDArray[np.int64]) -> Table:
    """`table` with stamps. sizes: bytes of the image where they are known, else 0 · mtimes: from size and time of the
    data file and from the row; where the image lies elsewhere another number in every run, so that it is read again.
    """
    now = time.time_ns()
    for number, file in enumerate(files):
        own = np.flatnonzero(which == number)
        table.sizes[own] = file.sizes(rows[own])
        stamps = np.int64(file.stamp() >> 1) ^ rows[own]
        table.mtimes[own] = np.where(file.embedded(rows[own]), stamps, now)
    return table
