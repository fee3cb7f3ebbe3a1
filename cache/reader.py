"""Read a feature file as memory-mapped arrays."""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from precompute.cache import provenance
from precompute.cache.check import read_layout
from precompute.cache.checksum import table_digest
from precompute.cache.columns import Column, Layout
from precompute.cache.provenance import Record
from precompute.cache.status import SPLITS, Status
from precompute.errors import CacheError, CacheFormatError
from precompute.system import physical_memory, use_huge_pages

if TYPE_CHECKING:
    from precompute.cache.torch_dataset import FeatureDataset


class Cache:
    """A feature file, open for reading; N samples in the order of their ids.

    All arrays are memory-mapped or small; opening reads names and labels once, to check them. The file is
    mapped once, on opening, so a cache that is replaced or deleted while it is open stays readable as it was. Made by
    `open_cache`.
    """

    def __init__(self, path: str, layout: Layout, mapped: np.memmap[Any, np.dtype[np.uint8]]) -> None:
        self.path = path
        self.layout = layout
        self._pages: Any = mapped.base  # an mmap.mmap
        self._mapped = np.asarray(mapped)  # a plain array: each view of a memmap pays for Python code of its own

    def __len__(self) -> int:
        return self.layout.rows

    def __repr__(self) -> str:
        return f"Cache({self.path!r}, {len(self)} samples, layers={list(self.layers)})"

    def column(self, name: str) -> NDArray[Any]:
        """Any column of FORMAT.md by its name, such as `samples/digest`, memory-mapped and read-only."""
        column: Column = self.layout.columns[name]
        if not column.nbytes:
            return np.zeros(column.shape, dtype=column.dtype)
        values: NDArray[Any] = self._mapped[column.offset : column.offset + column.nbytes].view(column.dtype)
        return values.reshape(column.shape)

    def let_go(self) -> None:
        """Give back the memory that pages of the file take in this process; they stay in the kernel's page cache."""
        self._pages.madvise(mmap.MADV_DONTNEED)

    @property
    def spec(self) -> dict[str, Any]:
        """The settings that decide a feature's value."""
        return self.layout.spec

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of `spec`."""
        return self.layout.key

    @property
    def layers(self) -> tuple[str, ...]:
        return self.layout.layers

    def features(self, layer: str | None = None) -> NDArray[np.floating]:
        """The features of `layer`, (N, *shape) float16 or float32, memory-mapped; the only layer where None is given.

        Rows whose sample failed hold NaN; rows not computed yet hold zeros. `ok` tells which rows to use.
        Raises CacheError for a layer that the file does not hold, or for None where it holds several.
        """
        if layer is None and len(self.layers) == 1:
            layer = self.layers[0]
        if layer not in self.layers:
            raise CacheError(
                f"{self.path} holds the layers {', '.join(self.layers)}; {layer!r} is not one of them.",
                hint="Name one of these layers, or extract again with --layer to another output.",
            )
        return self.column(f"features/{layer}")

    @property
    def ids(self) -> list[str]:
        """POSIX paths relative to the source. Bytes that are not UTF-8 appear as lone surrogates (os.fsdecode)."""
        return [os.fsdecode(value) for value in self.column("samples/id").tolist()]

    @property
    def labels(self) -> NDArray[np.int32]:
        """(N,) int32 index into `classes`, -1 where a sample has no label."""
        return self.column("samples/label")

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(os.fsdecode(value) for value in self.column("classes").tolist())

    @property
    def split(self) -> NDArray[np.str_]:
        """(N,) of "train", "val", "test" or "none"."""
        names: NDArray[np.str_] = np.array(SPLITS)[self.column("samples/split")]
        return names

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
        return next((record for record in reversed(self.provenance) if "audit" not in record), {})

    def dataset(self, layer: str | None = None, *, split: str | None = None) -> FeatureDataset:
        """A `torch.utils.data.Dataset` of (features, label) over the ok rows, of one split where it is named."""
        from precompute.cache.torch_dataset import FeatureDataset

        rows = self.ok if split is None else self.ok & (self.split == split)
        return FeatureDataset(self.features(layer), self.labels, np.flatnonzero(rows))


def open_cache(path: str | os.PathLike[str]) -> Cache:
    """Open the feature file at `path` for reading, also while another process is filling it.

    Raises CacheFormatError where it is not a precompute cache, is cut short, or holds anything that the format does
    not allow (links, filters, external storage, foreign types), or where ids, labels, splits or classes have changed
    since it was made. Features are not read: `verify` holds each row against its checksum.
    """
    name = os.fspath(path)
    while True:
        layout = read_layout(name)
        # What was checked and what is mapped must be one file, also where a writer renames another over it.
        with contextlib.suppress(FileNotFoundError), open(name, "rb") as file:
            if (os.fstat(file.fileno()).st_dev, os.fstat(file.fileno()).st_ino) == layout.identity:
                _refuse_holes(name, file.fileno(), layout.columns["samples/id"])
                cache = Cache(name, layout, _map(file, layout.file_size))
                _check_table(cache)
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
    """A sparse file can claim any number of samples; names that were never written would be read for ever."""
    try:
        hole = os.lseek(descriptor, ids.offset, os.SEEK_HOLE)
    except OSError:  # a file system that does not know its holes
        return
    if hole < ids.offset + ids.nbytes:
        raise CacheFormatError(
            f"{path} is not a precompute feature file: the names of its {ids.shape[0]:,} samples were never written.",
            hint="If a copy or download was cut short, fetch it again; else extract again to another output.",
        )


def _check_table(cache: Cache) -> None:
    columns = (cache.column(name) for name in ("samples/id", "samples/label", "samples/split", "classes"))
    if table_digest(*columns) != cache.layout.table:
        raise CacheFormatError(
            f"{cache.path} is damaged: its ids, labels, splits or classes are not those it was made with.",
            hint="If a copy or download was cut short, fetch it again; else extract again to another output.",
        )
    # A forged file has a right digest; a label or split without a name would be found by whoever looks the name up.
    labels, splits = cache.labels, cache.column("samples/split")
    if labels.min() < -1 or labels.max() >= len(cache.column("classes")) or splits.max() >= len(SPLITS):
        raise CacheFormatError(
            f"{cache.path} is not a precompute feature file: it has labels or splits without a name.",
            hint="Use a file made by `precompute extract`; nothing in this one was read further.",
        )
