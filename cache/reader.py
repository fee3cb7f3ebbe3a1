"""Read a feature file as memory-mapped arrays."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from precompute.cache import provenance
from precompute.cache.check import read_layout
from precompute.cache.checksum import column_digest, table_digest
from precompute.cache.columns import INT8, KEPT_WINDOWS, VIEW, Column, Layout, channel_axis
from precompute.cache.key import spec_layers
from precompute.cache.provenance import Record
from precompute.cache.quantised import Features, QuantisedFeatures, QuantisedRows, Rows
from precompute.cache.status import SPLITS, UNKNOWN_SPLIT, Status
from precompute.errors import CacheError, CacheFormatError
from precompute.system import physical_memory, use_huge_pages
from precompute.system.samples import Words, words_of_spec

if TYPE_CHECKING:
    import pandas as pd

    from precompute.cache.torch_dataset import FeatureDataset

CHECKED_ROWS = 1_000_000  # a file of so many rows has its table checked where it matters, not on opening


FOUND = {"audit", "cut"}
"""What a run adds to its record when it ends, as separate records."""


class Cache:
    """A feature file, open for reading; N samples in the order of their ids. Made by `open_cache`.

    Arrays are memory-mapped. The file is mapped once, on opening, so a cache that is replaced or deleted while it is
    open stays readable as it was. It is a context manager, and is pickled by its path: unpickling opens the
    file, which must hold the same settings and the same table of samples.
    """

    def __init__(self, path: str, layout: Layout, mapped: np.memmap[Any, np.dtype[np.uint8]]) -> None:
        self.path = path
        self.layout = layout
        self._absolute = os.path.abspath(path)  # the working folder may be another one when it is pickled
        self._pages: Any = mapped.base  # an mmap.mmap
        # A plain array: each view of a memmap pays for Python code of its own. None once the cache is closed.
        self._mapped: NDArray[np.uint8] | None = np.asarray(mapped)
        self._checked = dict.fromkeys(("table", "labels", *layout.further), False)

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_same, (self._absolute, self.key, self.layout.table)

    def close(self) -> None:
        """Give the file back. Arrays that were taken from the cache stay valid, and hold it until they go."""
        self._mapped = self._pages = None

    def __len__(self) -> int:
        return self.layout.rows

    def __repr__(self) -> str:
        return f"Cache({self.path!r}, {len(self)} samples, layers={list(self.layers)})"

    def column(self, name: str) -> NDArray[Any]:
        """Any column of FORMAT.md by its name, such as `samples/digest`, memory-mapped and read-only.

        A further column, such as `columns/patient`, is checked by its digest the first time.
        Raises CacheError for a name that the file does not hold, CacheFormatError for a further column that is damaged.
        """
        if self._mapped is None:
            raise CacheError(f"{self.path} has been closed.", hint="Open it again: precompute.open_cache(path).")
        if name not in self.layout.columns:
            names = ", ".join(map(ascii, self.layout.columns))
            raise CacheError(f"{self.path} has no column {name!r}.", hint=f"Its columns: {names}.")
        column: Column = self.layout.columns[name]
        if not column.nbytes:
            return np.zeros(column.shape, dtype=column.dtype)
        stored = self._mapped[column.offset : column.offset + column.nbytes]
        values: NDArray[Any] = stored.view(column.dtype).reshape(column.shape)
        if name in self.layout.further and not self._checked[name]:
            if column_digest(name.partition("/")[2], values) != self.layout.further[name]:
                raise _damaged(self.path, f"its column `{name}` is not the one it was made with")
            self._checked[name] = True
        return values

    def release_pages(self) -> None:
        """Give back the memory that pages of the file take in this process; they stay in the kernel's page cache."""
        if self._pages is not None:
            self._pages.madvise(mmap.MADV_DONTNEED)

    def check_table(self) -> None:
        """Compare ids, labels, splits and classes with their digest, once; a second call does nothing.

        `open_cache` calls it for files of fewer than a million rows; callers that train on the rows or copy them do it
        for larger ones. It reads all of these columns. Raises CacheFormatError where they have changed.
        """
        if self._checked["table"]:
            return
        columns = (self.column(name) for name in ("samples/id", "samples/label", "samples/split", "classes"))
        if table_digest(*columns) != self.layout.table:
            raise _damaged(self.path, "its ids, labels, splits or classes are not those it was made with")
        _ = self.labels
        self._checked["table"] = True

    def trust_table(self) -> None:
        """Take it as checked: by anyone who has just written it, or has compared it with its digest already."""
        self._checked["table"] = True

    @property
    def spec(self) -> dict[str, Any]:
        """The settings that decide a feature's value."""
        return self.layout.spec

    @property
    def words(self) -> Words:
        """What messages call the samples: images, texts or clips."""
        return words_of_spec(self.spec)

    @property
    def key(self) -> str:
        """SHA-256 of `spec` as it is stored."""
        return self.layout.key

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order of `spec`."""
        return self.layout.layers

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the source's further columns: `column("columns/NAME")` reads one."""
        return tuple(name.partition("/")[2] for name in self.layout.further)

    def features(self, layer: str | None = None) -> Features:
        """The features of `layer`, (N, *shape) float16 or float32, memory-mapped; the only layer where None is given.

        (N, views, *shape) where each sample has several `views`. A layer of 8 bits is a `QuantisedFeatures`, which
        gives float32 for the rows that are requested.
        Rows whose sample failed hold NaN; rows not computed yet hold zeros. `ok` marks the rows to use.
        Raises CacheError for a layer that the file does not hold, or for None where it holds several.
        """
        stored = self.stored(layer)
        return QuantisedFeatures(stored) if isinstance(stored, QuantisedRows) else stored

    def stored(self, layer: str | None = None) -> Rows:
        """The rows of `layer` as they are stored, memory-mapped: an array, or of 8 bits codes and scales.

        For anyone who copies or checks rows; some of them are taken by a slice or an array. Raises as `features`.
        """
        name = self._layer(layer)
        values = self.column(f"features/{name}")
        if self.storage(name) != INT8:
            return values
        channel = channel_axis(spec_layers(self.spec)[name][0])
        assert channel is not None  # checked on opening
        return QuantisedRows(values, self.column(f"scales/{name}"), channel)

    def storage(self, layer: str | None = None) -> str:
        """How a layer is stored: "float32", "float16" or "int8". Raises as `features`."""
        name = self._layer(layer)
        return INT8 if f"scales/{name}" in self.layout.columns else self.layout.columns[f"features/{name}"].dtype.name

    def row_bytes(self, layer: str) -> int:
        """Bytes that a row of `layer` takes in the file."""
        columns = self.layout.columns
        scales = columns.get(f"scales/{layer}")
        return columns[f"features/{layer}"].row_bytes + (0 if scales is None else scales.row_bytes)

    def _layer(self, layer: str | None) -> str:
        if layer is None and len(self.layers) == 1:
            layer = self.layers[0]
        if layer is None or layer not in self.layers:
            raise CacheError(
                f"{self.path} holds the layers {', '.join(self.layers)}; "
                + ("one of them must be named." if layer is None else f"{layer!r} is not one of them."),
                hint="Name one of these layers (--layer), or extract again with --layer to another output.",
            )
        return layer

    @property
    def views(self) -> int:
        """How many views of each sample it holds; with more than one, features are (N, views, *shape)."""
        axes, _ = next(iter(spec_layers(self.spec).values()))
        return self.layout.columns[f"features/{self.layers[0]}"].shape[1] if axes[0] == VIEW else 1

    @property
    def windows(self) -> int:
        """How many of its views are windows of a clip, behind their mean; 0 where views are made otherwise."""
        augment = self.spec.get("augment")
        kept = isinstance(augment, Mapping) and augment.get("windows") == KEPT_WINDOWS
        return self.views - 1 if kept else 0

    def plain_features(self, layer: str | None = None) -> Features:
        """The features of the plain view, view 0, (N, *shape): all of them where there is one. See `features`."""
        features = self.features(layer)
        plain: Features = features[:, 0] if self.views > 1 else features
        return plain

    @property
    def ids(self) -> list[str]:
        """POSIX paths relative to the source, or a table's ids.

        Bytes that are not UTF-8 appear as lone surrogates (os.fsdecode).
        """
        return [os.fsdecode(value) for value in self.column("samples/id").tolist()]

    @property
    def labels(self) -> NDArray[np.int32]:
        """(N,) int32 index into `classes`, -1 where a sample has no label.

        Raises CacheFormatError for labels without a class, which only a forged file holds.
        """
        labels = self.column("samples/label")
        if not self._checked["labels"]:
            if labels.min() < -1 or labels.max() >= self.layout.columns["classes"].shape[0]:
                raise CacheFormatError(
                    f"{self.path} is not a precompute feature file: it has labels without a class.",
                    hint="Use a file made by `precompute extract`; nothing in this one was read further.",
                )
            self._checked["labels"] = True
        return labels

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(os.fsdecode(value) for value in self.column("classes").tolist())

    @property
    def split(self) -> NDArray[np.str_]:
        """(N,) of "train", "val", "test" or "none"; "unknown" for a code of a later precompute (see `known_split`)."""
        names = np.array([*SPLITS, UNKNOWN_SPLIT])
        found: NDArray[np.str_] = names[np.minimum(self.column("samples/split"), len(SPLITS))]
        return found

    @property
    def known_split(self) -> NDArray[np.bool_]:
        """(N,) bool: rows whose split this precompute knows. Nothing may train on the others or be scored on them."""
        known: NDArray[np.bool_] = self.column("samples/split") < len(SPLITS)
        return known

    @property
    def status(self) -> NDArray[np.uint8]:
        """(N,) uint8, the values of `Status`."""
        return self.column("samples/status")

    @property
    def ok(self) -> NDArray[np.bool_]:
        """(N,) bool: rows that have been written with features, also in a file that is still being filled.

        It looks at status and checksum columns, not at the features' bytes: `verify` does, for damaged disks and
        files in progress that a power cut has left.
        """
        there = np.ones(len(self), dtype=bool)
        for layer in self.layers:
            there &= self.column(f"checksums/{layer}") != 0
        there &= self.status == Status.OK
        return there

    @property
    def provenance(self) -> list[Record]:
        """What runs that added rows say of themselves, oldest first: one record at the start, one of their audit."""
        return provenance.parse(self.column("provenance").tobytes())[0]

    @property
    def provenance_room(self) -> int:
        """Bytes that are free for further records."""
        block = self.column("provenance").tobytes()
        return len(block) - provenance.parse(block)[1]

    @property
    def last_run(self) -> Record:
        """The record that the last run began with; empty where there is none."""
        return next((record for record in reversed(self.provenance) if FOUND.isdisjoint(record)), {})

    def dataset(self, layer: str | None = None, *, split: str | None = None, view: int | None = 0) -> FeatureDataset:
        """A `torch.utils.data.Dataset` of (features, label) over the ok rows, of one split where it is named.

        view: which of several, by default the plain one; None for all of them, as (views, *shape).
        Without `split` it holds the rows of all splits that this precompute knows. It is pickled as the cache's path
        and row numbers, so each worker of a DataLoader opens the file itself. Raises CacheFormatError for a table that
        does not match its digest.
        """
        from precompute.cache.torch_dataset import FeatureDataset

        self.check_table()
        rows = self.ok & (self.known_split if split is None else self.split == split)
        if view is not None and not 0 <= view < self.views:
            raise CacheError(
                f"{self.path} holds {self.views} views, and none has the number {view}.", hint="Views count from 0."
            )
        return FeatureDataset(self, layer, np.flatnonzero(rows), view if self.views > 1 else None)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each sample: id, label (the class' name or NA), split, status, and further columns.

        The index is the row number, in features too: `cache.features()[frame.index[frame.label == "cats"]]`. Label,
        split and status are categories. Further columns have their own names, `name[0]`, `name[1]` and so on where they
        hold several values, and `columns/NAME` where one has the name of another column here.
        Raises CacheError where pandas is not installed.
        """
        from precompute.cache.table import to_pandas

        return to_pandas(self)


def open_cache(path: str | os.PathLike[str]) -> Cache:
    """Open the feature file at `path` for reading, also while another process is filling it.

    What is checked when: on opening, the structure (no links, filters, external storage or foreign types; nothing cut
    short or overlapping), format, version and `requires`, the key, and that the layers are those of `spec`. Names,
    labels, splits and classes are compared with their digest on opening in files of fewer than a million rows; in
    larger ones, `verify`, training and extraction do so before they use them (`Cache.check_table`). A further column is
    compared with its digest when it is read first. Features are not read: `verify` compares each row with its checksum.

    Raises CacheFormatError where it is not a precompute cache, needs a newer precompute, or fails one of these checks.
    """
    name = os.fspath(path)
    while True:
        layout = read_layout(name)
        # What was checked and what is mapped must be one file, also where a writer renames another over it.
        with contextlib.suppress(FileNotFoundError), open(name, "rb") as file:
            if (os.fstat(file.fileno()).st_dev, os.fstat(file.fileno()).st_ino) == layout.identity:
                _refuse_holes(name, file.fileno(), layout.columns["samples/id"])
                cache = Cache(name, layout, _map(file, layout.file_size))
                if len(cache) < CHECKED_ROWS:
                    cache.check_table()
                return cache


def view(path: str, layout: Layout, descriptor: int) -> Cache:
    """The file that this process lays out or fills, for reading: its structure and its table are known to be right."""
    with open(os.dup(descriptor), "rb") as file:
        cache = Cache(path, layout, _map(file, layout.file_size))
    cache.trust_table()
    return cache


def _open_same(path: str, key: str, table: str) -> Cache:
    """The cache that was pickled. Raises CacheError where another one is at its path by now."""
    cache = open_cache(path)
    if (cache.key, cache.layout.table) != (key, table):
        raise CacheError(
            f"{path} is not the feature file that was pickled: it has been replaced by one with other settings "
            "or samples.",
            hint="Open the new file, and create the datasets again.",
        )
    return cache


def _map(file: BinaryIO, size: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Map the file, with pages as large as an array in memory has them: random rows come a fifth faster (measured).

    Not where the file does not fit: each miss would read 2 MiB from the disk.
    """
    mapped: np.memmap[Any, np.dtype[np.uint8]] = np.memmap(file, dtype=np.uint8, mode="r", shape=(size,))
    pages: Any = mapped.base  # an mmap.mmap
    if 2 * size < physical_memory():
        use_huge_pages(pages)
    return mapped


def _refuse_holes(path: str, descriptor: int, ids: Column) -> None:
    """A sparse file can claim any number of samples; names that were never written would be read forever."""
    try:
        hole = os.lseek(descriptor, ids.offset, os.SEEK_HOLE)
    except OSError:  # a file system that does not know its holes
        return
    if hole < ids.offset + ids.nbytes:
        raise CacheFormatError(
            f"{path} is not a precompute feature file: the names of its {ids.shape[0]:,} samples were never written.",
            hint="If a copy or download was truncated, download it again; else extract again to another output.",
        )


def _damaged(path: str, what: str) -> CacheFormatError:
    return CacheFormatError(
        f"{path} is damaged: {what}.",
        hint="If a copy or download was truncated, download it again; else extract again to another output.",
    )
