"""Images that are decoded already, (n, height, width, 3) of uint8 in a .npy or .npz file or in memory."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from precompute.errors import SampleError, SourceError
from precompute.sources.array_files import ArrayFile, Columns, NumPyFile
from precompute.sources.array_table import table_of
from precompute.sources.base import FileKind, Raw, Reading, Source, Table, ascii_name
from precompute.sources.files import identity_of
from precompute.sources.remote.address import is_address

ENDINGS = (".npy", ".npz")
MEMORY_BYTES = 2**30  # that a compressed array may take, which cannot be read a row at a time

Pixels = Callable[[int], NDArray[np.uint8]]


class ArraySource(Source):
    """Rows of an array of images; each is read as the bytes of a BMP file, which holds the same pixels.

    path: of the file, None for an array in memory · pixels: gives an image (h, w) or (h, w, 3) by its row in the array
    · order: (N,) that row for each row of `table`.
    """

    def __init__(self, path: str | None, name: str, table: Table, pixels: Pixels, order: NDArray[Any]) -> None:
        self.name, self.table = name, table
        self._path, self._pixels, self._order = path, pixels, order
        self._identity = None if path is None else identity_of(os.fsencode(path))

    @property
    def origin(self) -> str:
        """See `Source`."""
        return self.name if self._path is None else os.path.abspath(self._path)

    def read(self, row: int) -> Raw:
        """See `Source`."""
        image = self._pixels(int(self._order[row]))
        return Raw(bmp(image), image.nbytes, stamp(image))

    def alive(self) -> bool:
        """See `Source`."""
        return self._path is None or identity_of(os.fsencode(self._path)) == self._identity

    def reads(self, path: str) -> bool:
        """See `Source`."""
        return self._path is not None and os.path.realpath(path) == os.path.realpath(self._path)


class _RowsOfFile:
    """Images of a file that is not compressed, each read when it is requested; from any thread."""

    def __init__(self, file: NumPyFile, offset: int) -> None:
        self._path, self._shape, self._offset = file.path, file.shape[1:], offset
        self._size = math.prod(self._shape)
        status = os.stat(file.path)
        self._is = status.st_dev, status.st_ino, status.st_size

    def __call__(self, row: int) -> NDArray[np.uint8]:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            gone = "VANISHED" if isinstance(error, FileNotFoundError) else "UNREADABLE"
            raise SampleError(error.strerror or str(error), reason=gone) from error
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino, status.st_size) != self._is:
                raise SampleError("the file has been replaced since it was listed", reason="UNREADABLE")
            content = os.pread(descriptor, self._size, self._offset + row * self._size)
        except OSError as error:
            raise SampleError(error.strerror or str(error), reason="UNREADABLE") from error
        finally:
            os.close(descriptor)
        if len(content) < self._size:
            raise SampleError("the file has become shorter since it was listed", reason="UNREADABLE")
        return np.frombuffer(content, np.uint8).reshape(self._shape)


def stamp(image: NDArray[np.uint8]) -> int:
    """63 bits that follow from the pixels."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(image).tobytes()) >> 1


def recognises(name: str) -> bool:
    """What ends in .npy or .npz; a folder of such a name is a folder."""
    return name.lower().endswith(ENDINGS) and not (os.path.isdir(name) or is_address(name))


def open_images(
    name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: Callable[[], int] | None
) -> ArraySource:
    """The images in a .npy or .npz file, which is mapped, or held where it is compressed. Raises SourceError.

    An image counts as changed where its pixels have: they are all read once, to tell.
    """
    del kind, reading, stop
    file = NumPyFile(name, "images")
    _check(file)
    offset = file.offset()
    pixels: Pixels = _RowsOfFile(file, offset or 0)
    if offset is None:
        needed = math.prod(file.shape)
        if needed > MEMORY_BYTES:
            raise file.wrong(
                f"is compressed, and its {needed:,} bytes of images do not fit into {MEMORY_BYTES:,} of memory",
                "Save it with np.savez, which does not compress.",
            )
        pixels = np.concatenate([block for _, block in file.blocks()]).__getitem__
    table, order = table_of(file)
    return _source(name, ascii_name(name), table, pixels, order, limit)


def images_of(
    images: NDArray[np.uint8],
    *,
    ids: Any = None,
    labels: Any = None,
    splits: Any = None,
    name: str = "an array of images",
) -> ArraySource:
    """A source of an array (n, h, w) or (n, h, w, 3) of uint8 in memory, for `extract`.

    ids: (n,) unique, else rows are numbered · labels: (n,) text or whole numbers · splits: (n,) names of splits.
    Raises SourceError for other shapes and dtypes.
    """
    file = Columns(name, len(images), main="images", ids=ids, labels=labels, splits=splits)
    file.shape, file.dtype = images.shape, images.dtype
    _check(file)
    table, order = table_of(file)
    return _source(None, name, table, images.__getitem__, order, None)


def bmp(pixels: NDArray[np.uint8]) -> bytes:
    """`pixels`, (h, w) grey or (h, w, 3) RGB, as an uncompressed BMP file: its bytes follow from them alone."""
    height, width = pixels.shape[:2]
    grey = pixels.ndim == 2
    row = width * (1 if grey else 3)
    stored = np.zeros((height, (row + 3) // 4 * 4), np.uint8)
    upwards = pixels[::-1]
    stored[:, :row] = upwards if grey else upwards[:, :, ::-1].reshape(height, row)
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, axis=1)
    palette[:, 3] = 0
    colours = palette.tobytes() if grey else b""
    start = 54 + len(colours)
    header = struct.pack("<2sIHHI", b"BM", start + stored.size, 0, 0, start)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, 8 if grey else 24, 0, stored.size, 0, 0, 256 if grey else 0, 0
    )
    return header + info + colours + stored.tobytes()


def _check(file: ArrayFile) -> None:
    good = file.dtype == np.uint8 and (len(file.shape) == 3 or (len(file.shape) == 4 and file.shape[3] == 3))
    if not good or min(file.shape) < 1:
        raise SourceError(
            f"{file.path} has images of the type {file.dtype} and shape {file.shape}; uint8 of (n, height, width) or "
            "(n, height, width, 3) are taken.",
            hint="Put channels last, as np.moveaxis(images, 1, -1) does, and scale to 0 to 255.",
        )


def _source(
    path: str | None, name: str, table: Table, pixels: Pixels, order: NDArray[Any], limit: int | None
) -> ArraySource:
    kept = slice(None, limit)
    order = order[kept]
    stamps, sizes = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    for row, place in enumerate(order.tolist()):
        image = pixels(place)
        stamps[row], sizes[row] = stamp(image), image.nbytes
    labels, classes = table.labels[kept], table.classes
    if limit is not None:  # only the classes of those that are left
        present = np.unique(labels[labels >= 0])
        labels = np.where(labels < 0, -1, np.searchsorted(present, labels)).astype(np.int32)
        classes = tuple(classes[label] for label in present)
    further = {name: values[kept] for name, values in table.columns.items()}
    cut = Table(table.ids[kept], sizes, stamps, labels, table.splits[kept], classes, further)
    return ArraySource(path, name, cut, pixels, order)
