"""The features of a cache with their ids, labels, splits and further columns, as a file that other programs open."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, Features, open_cache
from precompute.errors import CacheError, UsageError
from precompute.heads.base.rows import BLOCK_BYTES
from precompute.system.output import Kind, check_output
from precompute.training.splits import whole_rows

TEXT_BYTES = 2**30  # of a column of text in an .npz file, where each entry takes as much as the longest
DIGITS = {"float16": 5, "float32": 9, "float64": 17}  # that give back the same number


@dataclass(frozen=True)
class Exported:
    """rows: that are in the file · left_out: rows of the cache without features · columns: before the features."""

    path: str
    layer: str
    rows: int
    left_out: int
    columns: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "columns": list(self.columns)}


@dataclass(frozen=True)
class _Content:
    """Of the rows that are written: features (N, *shape) of the whole cache and which `rows` of it, text columns
    (n,) of str or numbers (n,) or (n, k)."""

    features: Features
    rows: NDArray[np.intp]
    columns: dict[str, NDArray[Any]]
    progress: Callable[[int, int], None] | None

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.floating]]]:
        """Positions among `rows`, and their features as they are stored."""
        size = max(1, BLOCK_BYTES // max(1, self.features[:1].nbytes))
        for start in range(0, max(1, len(self.rows)), size):  # one block at least, which may be empty
            part = slice(start, min(start + size, len(self.rows)))
            yield part, self.features[self.rows[part]]
            if self.progress is not None:
                self.progress(part.stop, len(self.rows))


def export_features(
    cache: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    layer: str | None = None,
    plain_view: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write the rows of `cache` that have features to `path`, which ends in .npz, .csv or .parquet.

    id, label (a class' name, "" for none), split ("none", "train", "val", "test") and further columns come first. An
    .npz file has them as arrays (n,) next to `features` (n, *shape) in the dtype they are stored in, of 8 bits as
    float32; a .csv file has the features in columns f0, f1, ..., with enough digits to restore the same numbers; a
    .parquet file has lists.
    Every row is compared with its checksum first. Memory does not grow with the cache, except ids and other columns.

    With several views a .npz file holds (n, views, *shape); the others have one view after the other. plain_view: only
    the first.

    layer: which of several. progress: called with (rows written, rows).
    Raises UsageError for another ending, CacheError for damaged rows, names that .npz cannot hold, an output that
    exists, or where pyarrow is missing.
    """
    name = os.fspath(path)
    ending = os.path.splitext(name)[1].lower()
    if ending not in WRITERS:
        raise UsageError(
            f"What kind of file {name!r} is to be is not clear.", hint=f"End its name in {', '.join(WRITERS)}."
        )
    if ending == ".parquet":
        _pyarrow()
    output = check_output(name, KIND, overwrite=overwrite, inputs=(os.fspath(cache),))
    with open_cache(cache) as opened:
        opened.check_table()
        features = opened.plain_features(layer) if plain_view else opened.features(layer)
        layer = layer or opened.layers[0]
        rows = np.flatnonzero(whole_rows(opened, layer))
        content = _Content(features, rows, _columns(opened, rows), progress)
        output.write(lambda file: WRITERS[ending](file, content))
        return Exported(name, layer, len(rows), len(opened) - len(rows), tuple(content.columns))


def _columns(cache: Cache, rows: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    labels = np.array([*cache.classes, ""], dtype=object)  # the label -1 is the last
    found: dict[str, NDArray[Any]] = {
        "id": np.array([os.fsdecode(one) for one in cache.column("samples/id")[rows].tolist()], dtype=object),
        "label": labels[cache.labels[rows]],
        "split": cache.split[rows].astype(object),
    }
    for name in cache.columns:
        values = cache.column(f"columns/{name}")[rows]
        shown = f"columns/{name}" if name in (*found, "features") else name
        if values.dtype.kind == "S":
            values = np.array([os.fsdecode(value) for value in values.tolist()], dtype=object)
        found[shown] = values
    return found


def _write_npz(file: BinaryIO, content: _Content) -> None:
    """As numpy.savez does, without an array of all features; nothing in it is pickled."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, values in content.columns.items():
            array = values if values.dtype != object else _text(name, values)
            with archive.open(f"{name.replace('/', '.')}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        features = content.features
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {
                "descr": np.lib.format.dtype_to_descr(features.dtype),
                "fortran_order": False,
                "shape": (len(content.rows), *features.shape[1:]),
            }
            np.lib.format.write_array_header_2_0(member, header)
            for _, block in content.blocks():
                member.write(np.ascontiguousarray(block).tobytes())


def _text(name: str, values: NDArray[Any]) -> NDArray[np.str_]:
    longest = max((len(value) for value in values), default=0)
    if 4 * longest * len(values) > TEXT_BYTES:
        raise CacheError(
            f"The column {name!r} has {len(values):,} texts of up to {longest:,} characters, which would take "
            f"{4 * longest * len(values):,} bytes in an .npz file.",
            hint="Write a .parquet or a .csv file.",
        )
    return values.astype(np.str_)


def _write_csv(file: BinaryIO, content: _Content) -> None:
    width = int(np.prod(content.features.shape[1:]))
    form = f"%.{DIGITS[content.features.dtype.name]}g"
    # Names that are not UTF-8 go out as the bytes they are.
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    header: list[str] = []
    columns: list[NDArray[Any]] = []
    for name, values in content.columns.items():
        wide = values if values.ndim > 1 else values[:, None]
        header += [name] if values.ndim == 1 else [f"{name}[{k}]" for k in range(wide.shape[1])]
        columns += list(wide.T)
    writer.writerow([*header, *(f"f{k}" for k in range(width))])
    for part, block in content.blocks():
        before = zip(*(column[part].tolist() for column in columns), strict=True)
        numbers = block.reshape(len(block), width).tolist()
        writer.writerows((*known, *(form % value for value in row)) for known, row in zip(before, numbers, strict=True))
    text.flush()
    text.detach()


def _write_parquet(file: BinaryIO, content: _Content) -> None:
    pa, parquet = _pyarrow()
    width = int(np.prod(content.features.shape[1:]))
    vector = pa.list_(pa.from_numpy_dtype(content.features.dtype), width)

    def column(values: NDArray[Any]) -> Any:
        if values.dtype == object:
            # Parquet's text is UTF-8: a name that is not keeps its bytes, escaped.
            return pa.array([value.encode("utf-8", "backslashreplace").decode() for value in values], pa.string())
        if values.ndim > 1:
            return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])
        return pa.array(values)

    writer = None
    for part, block in content.blocks():
        numbers = pa.array(np.ascontiguousarray(block).ravel())
        table = pa.table(
            {
                **{name: column(values[part]) for name, values in content.columns.items()},
                "features": pa.FixedSizeListArray.from_arrays(numbers, type=vector),
            }
        )
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise CacheError(
            f"A .parquet file needs pyarrow: {error}.", hint="Install it: pip install 'precompute[parquet]'"
        ) from error
    return pa, parquet


def _check(path: str) -> None:
    raise CacheError(f"{path!r} exists, and may be another program's.", hint="")


KIND = Kind(CacheError, _check)
WRITERS: dict[str, Callable[[BinaryIO, _Content], None]] = {
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
