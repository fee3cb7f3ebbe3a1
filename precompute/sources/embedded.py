"""Images that lie as bytes in the rows of Arrow and Parquet files, as in the data sets of Hugging Face.

A sample's id is the value of `--id-column`, else the `path` that is stored with each image where those are all there
and different, else the number of its row. Ids of a data set with splits begin with the split: `train/ant.jpg`,
`train/000000012`. An image without bytes is the file that its path names, below the folder of the data set.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from precompute.errors import SampleError, SourceError, Stopped
from precompute.sources.base import FileKind, Raw, Reading, Source, Table, ascii_name
from precompute.sources.entries import MAX_STRING_BYTES, Entries, Rows
from precompute.sources.files import mtime_ns, read_file
from precompute.sources.header import choose
from precompute.sources.labels import splits_in_names
from precompute.sources.parquet import is_text, plain_type
from precompute.sources.text import open_regular

IMAGE_NAMES = ("image", "img")


@dataclass(frozen=True)
class ImageColumn:
    """The column that holds the images: a struct with `bytes` and perhaps `path`, or plain bytes."""

    name: str
    is_struct: bool
    has_path: bool


@dataclass(frozen=True)
class Block:
    """Some rows as they are listed. paths: those of the images, "" for none; None: none has one · columns: by name."""

    rows: int
    paths: Sequence[str] | None
    columns: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """What a row holds of its image: the bytes, or the path of a file, or neither."""

    data: bytes | None
    path: bytes | None


class DataFile(ABC):
    """A file of rows, one of whose columns are images. It is opened anew for each reading, and must not have changed.

    schema: pyarrow's, of its columns · rows: their number · status: the file as it was listed.
    """

    schema: Any
    rows: int

    def __init__(self, path: str, shown: str) -> None:
        self.path, self.shown = path, shown
        with open_regular(path, shown) as file:
            self.status = os.fstat(file.fileno())

    @abstractmethod
    def blocks(self, image: ImageColumn, names: list[str], *, with_paths: bool) -> Iterator[Block]:
        """All rows in order, of the columns `names`, and perhaps the paths of the images, without the images.

        Once it is through, `read` knows where they are.
        """

    @abstractmethod
    def read(self, row: int) -> Picture:
        """The image of one row, from any thread. Raises SampleError."""

    def sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of the images of `rows`, 0 where they are not known without reading them."""
        return np.zeros(len(rows), dtype=np.int64)

    @abstractmethod
    def embedded(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the image of each row surely lies in this file, and so is the same while the file is."""

    def opened(self) -> BinaryIO:
        """The file, to be listed. Raises SourceError where it has changed."""
        file = open_regular(self.path, self.shown)
        if self._changed(file):
            file.close()
            raise SourceError(f"{self.shown} has changed while it was listed.", hint="Run the same command again.")
        return file

    def sample_file(self) -> BinaryIO:
        """The file, for one sample. Raises SampleError where it has changed or gone."""
        try:
            file = open_regular(self.path, self.shown)
        except SourceError as error:
            reason = "UNREADABLE" if os.path.lexists(self.path) else "VANISHED"
            raise SampleError(f"the data file: {error.message}", reason=reason) from error
        if self._changed(file):
            file.close()
            raise SampleError("the data file has changed since it was listed", reason="UNREADABLE")
        return file

    def stamp(self) -> int:
        """64 bits that follow from the file's size and modification time."""
        return xxhash.xxh3_64_intdigest(b"%d %d" % (self.status.st_size, mtime_ns(self.status)))

    def _changed(self, file: BinaryIO) -> bool:
        now = os.fstat(file.fileno())
        same = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
        return any(getattr(now, name) != getattr(self.status, name) for name in same)


@dataclass(frozen=True)
class Part:
    """A split of a data set. word: its name, "" where there are no splits · features: as the data set describes them,
    by column: `{"_type": "ClassLabel", "names": [...]}`."""

    word: str
    files: tuple[DataFile, ...]
    features: Mapping[str, Any] = field(default_factory=dict)


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
        notes += ("ids are numbers of rows: not each image has a path of its own",)
    return EmbeddedImages(
        listing.shown, origin, _stamped(listed.table, files, which, rows), files,
        roots=roots, which=which, rows=rows, extensions=kind.extensions, notes=notes,
    )  # fmt: skip


def has_images(schema: Any, reading: Reading) -> bool:
    """Whether a Parquet file is to be read for its images, not as a table of paths, which may be bytes, too."""
    asked = reading.columns.get("path")
    if asked is None and "path" in schema.names:
        return False
    described = features_of(schema)

    def counts(name: str, kind: Any) -> bool:
        feature = described.get(name)
        said_so = name in IMAGE_NAMES or (isinstance(feature, dict) and feature.get("_type") == "Image")
        return asked in (None, name) and (_is_struct(kind) or (_is_bytes(kind) and said_so))

    return any(counts(one.name, one.type) for one in schema)


@dataclass(frozen=True)
class _Columns:
    """What is read of a file. parts: names of the columns that hold id, label and split · further: of those kept."""

    image: ImageColumn
    parts: Mapping[str, str]
    further: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([*self.parts.values(), *self.further]))


class _Listing:
    """The rows of all parts, as entries of a table."""

    def __init__(self, shown: str, parts: Sequence[Part], reading: Reading, stop: Callable[[], int] | None) -> None:
        self.shown = shown
        self._parts, self._reading, self._stop = parts, reading, stop
        codes, notes = splits_in_names([os.fsencode(part.word) for part in parts])
        self._has_splits = bool(codes.any())
        self.notes = tuple(notes)

    def paths_are_ids(self) -> bool:
        """Whether each image has a path of its own, that may be an id; False where it does not matter."""
        if "id" in self._reading.columns:
            return False
        hashes: list[NDArray[np.uint64]] = []
        for part in self._parts:
            for file in part.files:
                image = self._columns(part, file).image
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
                columns = self._columns(part, file)
                classes = {name: names for name in columns.names if (names := _class_names(part, file, name))}
                texts = frozenset(name for name in columns.names if name in classes or is_text(_kind(file, name)))
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

    def _columns(self, part: Part, file: DataFile) -> _Columns:
        """Which columns of `file` are read. Raises SourceError."""
        image = self._image(file)
        named = {**self._reading.columns, "path": image.name}
        header = file.schema.names
        if "label" not in named and "label" not in header:
            labels = [name for name in header if _class_names(part, file, name)]
            named |= {"label": labels[0]} if len(labels) == 1 else {}
        chosen = choose(header, replace(self._reading, columns=named), file.shown)
        taken = {what: header[place] for what, place in chosen.parts.items() if what != "path"}
        if "id" not in named:
            taken.pop("id", None)
        if "split" not in named and self._has_splits:
            taken.pop("split", None)
        for name in (*taken.values(), *chosen.further):
            plain_type(_kind(file, name), name, file.shown)
        return _Columns(image, taken, tuple(chosen.further))

    def _image(self, file: DataFile) -> ImageColumn:
        """The column asked for, else the only one of structs with bytes, else `image` or `img`."""
        asked = self._reading.columns.get("path")
        kinds = {one.name: one.type for one in file.schema}
        found = [name for name, kind in kinds.items() if _is_struct(kind)]
        if len(found) != 1:
            found = [name for name in IMAGE_NAMES if name in kinds and _is_image(kinds[name])]
        name = asked if asked is not None else found[0] if len(found) == 1 else None
        if name is None or name not in kinds or not _is_image(kinds[name]):
            what = "no column of images" if asked is None else f"no images in {ascii_name(asked)!r}"
            columns = ", ".join(ascii_name(f"{one} ({kind})")[:100] for one, kind in list(kinds.items())[:20])
            raise SourceError(
                f"{file.shown} has {what}: bytes, or a struct of bytes and path. Its columns: {columns}.",
                hint="Name the column that holds them: --path-column NAME.",
            )
        kind = kinds[name]
        is_struct = _is_struct(kind)
        return ImageColumn(name, is_struct, is_struct and kind.get_field_index("path") >= 0)

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
        if self._stop is not None and (signum := self._stop()):
            raise Stopped(
                f"Stopped while {self.shown} was being listed.",
                signum=signum,
                hint="Nothing was computed or written yet. Run the same command again.",
            )


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


def _kind(file: DataFile, name: str) -> Any:
    return file.schema.field(name).type


def _class_names(part: Part, file: DataFile, name: str) -> list[str]:
    """Names of the classes that the numbers in a column stand for; none where it holds something else."""
    from pyarrow import types

    feature = (part.features or features_of(file.schema)).get(name)
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if not (isinstance(names, list) and all(isinstance(one, str) for one in names)):
        return []
    return names if file.schema.names.count(name) == 1 and types.is_integer(_kind(file, name)) else []


def features_of(schema: Any) -> dict[str, Any]:
    """What Hugging Face's datasets wrote about the columns of a file; {} where there is nothing of the kind."""
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        found = stored["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_struct(kind: Any) -> bool:
    """Of bytes and perhaps path."""
    from pyarrow import types

    if not types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    place = kind.get_field_index("path")
    return _is_bytes(kind.field("bytes").type) and (
        place < 0 or types.is_string(kind.field(place).type) or types.is_large_string(kind.field(place).type)
    )


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_image(kind: Any) -> bool:
    return _is_bytes(kind) or _is_struct(kind)


def _is_below(path: str, root: str) -> bool:
    """Whether `path`, without links, lies in the folder `root`."""
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
