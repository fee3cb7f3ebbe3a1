"""Files whose rows hold images as bytes: what is read of each kind, and the splits that they make up."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from precompute.errors import SampleError, SourceError
from precompute.sources.files import mtime_ns
from precompute.sources.text import open_regular


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
        """Whether the image of each row surely is in this file, and so is the same while the file is."""

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
