"""Arrays in .npz, .npy and .parquet files, read a block of rows at a time. Nothing in them is unpickled."""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import SourceError

BLOCK_BYTES = 16 * 2**20
COLUMN_BYTES = 2**30  # of a column that is read whole: ids, labels, ...
DEFLATES = 1032  # bytes that one byte of a compressed member stands for, at most
FEATURES = "features"
HINTS = {
    name: f"Save them as the array `{name}` {shape}, with `id`, `label` and `split` (n,) if there are any."
    for name, shape in (("features", "(n, d)"), ("images", "(n, height, width, 3) of uint8"))
}


class ArrayFile(ABC):
    """One file of arrays with as many rows each.

    main: name of the array that matters, "features" or "images" · shape, dtype: of it · columns: names of the others.
    """

    def __init__(self, path: str, main: str) -> None:
        self.path, self.main = path, main
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self.columns: tuple[str, ...] = ()

    @abstractmethod
    def column(self, name: str) -> NDArray[Any]:
        """One of `columns`, (n,) or (n, k): numbers, bool, bytes or str."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """First row and what the main array has of some rows, (b, *shape[1:]), in order."""

    def _rows_at_once(self) -> int:
        return max(1, BLOCK_BYTES // max(1, self.dtype.itemsize * math.prod(self.shape[1:])))

    def wrong(self, what: str, hint: str | None = None) -> SourceError:
        """An error about this file, to be raised."""
        return SourceError(f"{self.path} {what}.", hint=HINTS[self.main] if hint is None else hint)


class NumPyFile(ArrayFile):
    """A .npz file as numpy.savez and savez_compressed write it, or the main array alone as a .npy file."""

    def __init__(self, path: str, main: str) -> None:
        super().__init__(path, main)
        with self._opened() as archive:
            self._alone = archive is None
            listed = [f"{main}.npy"] if archive is None else archive.namelist()
        names = [name.removesuffix(".npy") for name in listed if name.endswith(".npy")]
        if len(set(names)) < len(names):
            raise self.wrong("has two arrays of one name")
        if main not in names:
            raise self.wrong(f"has no array `{main}`; it has {', '.join(map(ascii, names[:8])) or 'none'}")
        with self._array(self.main) as (file, self.shape, self.dtype):
            self._check_size(file)
        self.columns = tuple(name for name in names if name != main)

    def column(self, name: str) -> NDArray[Any]:
        with self._array(name) as (file, shape, dtype):
            n_bytes = dtype.itemsize * math.prod(shape)
            if n_bytes > COLUMN_BYTES:
                raise self.wrong(f"has an array {name!r} of {n_bytes:,} bytes", "Leave it out of the file.")
            return np.frombuffer(self._read(file, n_bytes), dtype).reshape(shape)

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        size = self._rows_at_once()
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        with self._array(self.main) as (file, _, _):
            for start in range(0, self.shape[0], size):
                rows = min(size, self.shape[0] - start)
                yield (
                    start,
                    np.frombuffer(self._read(file, rows * row_bytes), self.dtype).reshape(rows, *self.shape[1:]),
                )

    def _check_size(self, file: IO[bytes]) -> None:
        """Refuse a header that claims more numbers than the file can hold, before memory is taken for them."""
        claimed = self.dtype.itemsize * math.prod(self.shape)
        held = os.path.getsize(self.path) - file.tell() if self._alone else DEFLATES * os.path.getsize(self.path)
        if claimed > held:
            raise self.wrong(f"is truncated, or its header is wrong: it claims {claimed:,} bytes")

    def offset(self) -> int | None:
        """The byte at which the main array begins in the file; None where it is compressed."""
        with self._array(self.main) as (file, shape, dtype):
            start = file.tell()
        with self._opened() as archive:
            if archive is not None:
                member = archive.getinfo(f"{self.main}.npy")
                if member.compress_type != zipfile.ZIP_STORED:
                    return None
                with open(self.path, "rb") as whole:  # name and extra field of the member's own header may be longer
                    whole.seek(member.header_offset + 26)
                    name, extra = (int.from_bytes(whole.read(2), "little") for _ in range(2))
                start += member.header_offset + 30 + name + extra
        if start + dtype.itemsize * math.prod(shape) > os.path.getsize(self.path):
            raise self.wrong("is truncated", "Save it again.")
        return start

    @contextlib.contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile | None]:
        try:
            with open(self.path, "rb") as file:
                if file.read(2) != b"PK":
                    yield None
                    return
                file.seek(0)
                with zipfile.ZipFile(file) as archive:
                    yield archive
        except FileNotFoundError as error:
            raise self.wrong("does not exist", "Check the path for a typing error.") from error
        except (
            OSError,
            ValueError,
            EOFError,
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            zlib.error,
        ) as error:
            raise self.wrong(f"cannot be read: {error}", "Save it again.") from error

    @contextlib.contextmanager
    def _array(self, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
        """The array's bytes, behind its header, its shape and dtype."""
        with (
            self._opened() as archive,
            open(self.path, "rb") if archive is None else archive.open(f"{name}.npy") as file,
        ):
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, in_fortran_order, dtype = read(file)
            if dtype.hasobject:
                raise self.wrong(
                    f"has an array {name!r} of Python objects, which are not loaded: they can run code",
                    "Save text as an array of str: np.array(values, dtype=str).",
                )
            if in_fortran_order and len(shape) > 1:
                raise self.wrong(
                    f"has an array {name!r} in Fortran's order", "Save np.ascontiguousarray(array) instead."
                )
            yield file, shape, dtype

    def _read(self, file: IO[bytes], n_bytes: int) -> bytes:
        content = file.read(n_bytes)
        if len(content) < n_bytes:
            raise self.wrong("is truncated", "Save it again.")
        return content


class ParquetFile(ArrayFile):
    """A .parquet file with lists of one length in the column `features`."""

    def __init__(self, path: str, main: str) -> None:
        super().__init__(path, main)
        try:
            import pyarrow as pa
            from pyarrow import compute, parquet
        except ImportError as error:
            raise self.wrong(
                f"is a .parquet file, which needs pyarrow: {error}", "Install it: pip install 'precompute[parquet]'"
            ) from error
        self._pa, self._compute = pa, compute
        try:
            self._file = parquet.ParquetFile(path)
        except FileNotFoundError as error:
            raise self.wrong("does not exist", "Check the path for a typing error.") from error
        except (OSError, pa.ArrowException) as error:
            raise self.wrong(f"cannot be read: {error}", "Write it again.") from error
        names = self._file.schema_arrow.names
        if main not in names:
            raise self.wrong(f"has no column `{main}`; it has {', '.join(map(ascii, names[:8])) or 'none'}")
        kind = self._file.schema_arrow.field(main).type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            raise self.wrong(f"has no lists of numbers in `features`, but {kind}")
        first = next((block for _, block in self._lists(1)), None)
        # (Older releases of pyarrow ask pandas for this.)
        known = {"halffloat": "float16", "float": "float32", "double": "float64"}
        try:
            self.dtype = np.dtype(known.get(str(kind.value_type), str(kind.value_type)))
        except TypeError as error:
            raise self.wrong(f"has lists of {kind.value_type} in `{main}`") from error
        self.shape = (self._file.metadata.num_rows, 0 if first is None else first.shape[1])
        self.columns = tuple(name for name in names if name != main)

    def column(self, name: str) -> NDArray[Any]:
        values = self._file.read(columns=[name])[name]
        if values.nbytes > COLUMN_BYTES:
            raise self.wrong(f"has a column {name!r} of {values.nbytes:,} bytes", "Leave it out of the file.")
        if self._pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if values.null_count and not self._pa.types.is_string(values.type):
            raise self.wrong(f"has empty entries in the column {name!r}", "Fill them, or leave the column out.")
        found = values.to_pylist()
        return np.array(["" if value is None else value for value in found])

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        yield from self._lists(self._rows_at_once())

    def _lists(self, size: int) -> Iterator[tuple[int, NDArray[Any]]]:
        start, width = 0, -1
        for batch in self._file.iter_batches(batch_size=size, columns=[self.main]):
            lists = batch.column(0)
            if lists.null_count or lists.flatten().null_count:
                raise self.wrong(
                    f"has an empty entry in `features` behind row {start}", "Fill it, or leave the row out."
                )
            numbers = lists.flatten().to_numpy(zero_copy_only=False)
            lengths = self._compute.list_value_length(lists).to_numpy(zero_copy_only=False)
            width = int(lengths[0]) if width < 0 and len(lengths) else width
            if (odd := lengths != width).any():
                raise self.wrong(f"has lists of {width} and of {int(lengths[odd][0])} numbers in `features`")
            yield start, numbers.reshape(len(lists), width)
            start += len(lists)


class Columns(ArrayFile):
    """Ids, labels and splits (n,) that a program gives with `rows` samples; None for those that it does not give."""

    def __init__(self, name: str, rows: int, *, main: str = "images", ids: Any, labels: Any, splits: Any) -> None:
        super().__init__(name, main)
        self.shape = (rows,)
        given = {"id": ids, "label": labels, "split": splits}
        self._given = {key: np.asarray(values) for key, values in given.items() if values is not None}
        self.columns = tuple(self._given)

    def column(self, name: str) -> NDArray[Any]:
        """See `ArrayFile`."""
        return self._given[name]

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """There is nothing to read."""
        return iter(())


def open_arrays(path: str | os.PathLike[str], main: str = "features") -> ArrayFile:
    """The arrays in the file at `path`, by its ending. Raises SourceError."""
    name = os.fspath(path)
    kinds = {".npz": NumPyFile, ".npy": NumPyFile, ".parquet": ParquetFile}
    kind = kinds.get(os.path.splitext(name)[1].lower())
    if kind is None:
        raise SourceError(f"{name} is none of {', '.join(kinds)}.", hint=HINTS[main])
    return kind(name, main)
