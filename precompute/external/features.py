"""Imported features, with ids, labels and splits, into a cache: heads train on them as on any other."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Layer, Layout, RowWriter, Samples, Status, create
from precompute.errors import CacheError, DiskSpaceError, SourceError
from precompute.extraction.output import check_cache_output, remove_leftover
from precompute.extraction.rebuild import EXTERNAL
from precompute.sources.array_files import ArrayFile, open_arrays
from precompute.sources.array_table import table_of
from precompute.system import version_of

STORED = {"float16": "float16", "float32": "float32", "float64": "float32"}


@dataclass(frozen=True)
class Imported:
    """rows: in the file · not_finite: rows of them whose features have NaN or infinity, and so count as failed ·
    narrowed: whether float64 became float32."""

    path: str
    rows: int
    shape: tuple[int, ...]
    dtype: str
    not_finite: int
    narrowed: bool
    classes: tuple[str, ...]
    columns: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **vars(self), "shape": list(self.shape), "classes": list(self.classes), "columns": list(self.columns)
        }  # fmt: skip


def import_features(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Write the features in `source`, a .npz, .npy or .parquet file, as the cache `out`.

    `features` (n, ...) is float16, float32 or float64 (stored as float32). It may also have `id` (n,), unique, else
    rows are numbered; `label` (n,), text or whole numbers, "" for none; `split` (n,) of "train", "val", "test" and
    "none" or ""; and further columns. `export_features` writes such files.

    name: the model that made the features, with its version. Files with the same name count as features of one model: a
    head trained on one of them predicts on another. Without a name it predicts only on the same features.
    progress: called with (rows done, rows), twice for each row.
    Raises SourceError for what is wrong with `source`, CacheError and UsageError for the output. A crash leaves nothing
    under `out`.
    """
    file = open_arrays(source)
    shape, dtype = _checked(file)
    output = check_cache_output(out, overwrite=overwrite, inputs=(file.path,))
    if os.path.lexists(output.path) and not overwrite:
        raise CacheError(
            f"{output.path} exists, and imported features are not added to a file.",
            hint="It is left as it is. Choose another output, or replace it with --overwrite.",
        )
    _check_room(output.path, file)
    table, order = table_of(file)
    samples = Samples(table.ids, table.sizes, table.mtimes, table.labels, table.splits, table.classes)
    rows = len(samples)
    content = hashlib.sha256()
    for start, block in file.blocks():
        content.update(np.ascontiguousarray(block.astype(dtype, copy=False)).tobytes())
        _say(progress, start + len(block), 2 * rows)
    axes = ["channel"] if len(shape) == 1 else [f"axis{number + 1}" for number in range(len(shape))]
    spec = {
        "backbone": EXTERNAL,
        "weights": f"named {name}" if name else f"sha256 {content.hexdigest()}",
        "storage": dtype.name,
        "layers": [{"name": "features", "pooling": "none", "axes": axes}],
    }
    layers = {"features": Layer(shape, dtype, tuple(axes), "none")}
    target = np.empty(rows, np.int64)  # of each row of the source, its row in the cache
    target[order] = np.arange(rows)
    with output.lock():
        remove_leftover(output.fresh)
        try:
            layout = _laid_out(file, output.fresh, spec=spec, samples=samples, layers=layers, columns=table.columns)
            with RowWriter(output.fresh, layout) as writer:
                not_finite = _write(file, writer, target, dtype, progress)
                writer.append_provenance([_record(file.path, name, rows)])
                writer.sync()
                output.put(output.fresh)
        finally:
            with contextlib.suppress(OSError, CacheError):  # the error that ended the work is the one to report
                remove_leftover(output.fresh)
    classes = tuple(os.fsdecode(one) for one in samples.classes)
    return Imported(
        output.path, rows, shape, dtype.name, not_finite, file.dtype == np.float64, classes, tuple(table.columns)
    )


def _checked(file: ArrayFile) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape of a row and dtype to store."""
    if len(file.shape) < 2 or min(file.shape) < 1:
        raise SourceError(
            f"{file.path} has features of the shape {file.shape}; (n, d) is needed, with n and d above 0.",
            hint="Save one row of numbers for each sample.",
        )
    kind = file.dtype.newbyteorder("=").name
    if kind not in STORED:
        raise SourceError(
            f"{file.path} has features of the type {file.dtype}; {', '.join(STORED)} are stored.",
            hint="Convert them, for example by features.astype('float32').",
        )
    return file.shape[1:], np.dtype(STORED[kind])


def _laid_out(file: ArrayFile, path: str, **given: Any) -> Layout:
    try:
        return create(path, **given)
    except ValueError as error:
        raise SourceError(f"{file.path} has what a cache cannot hold: {error}.", hint="Leave it out.") from error


def _check_room(path: str, file: ArrayFile) -> None:
    """Before memory is taken for as many rows as the file says."""
    folder = os.path.dirname(path) or "."
    needed, free = file.dtype.itemsize * math.prod(file.shape) // 2, shutil.disk_usage(folder).free
    if needed > free:
        raise DiskSpaceError(
            f"{file.path} has {math.prod(file.shape):,} numbers, which need at least {needed:,} bytes; {folder} has "
            f"{free:,} free.",
            hint="Choose another output.",
        )


def _write(
    file: ArrayFile,
    writer: RowWriter,
    target: NDArray[np.int64],
    dtype: np.dtype[Any],
    progress: Callable[[int, int], None] | None,
) -> int:
    """Write all rows; how many of them are not finite."""
    not_finite = 0
    for start, block in file.blocks():
        rows = target[start : start + len(block)]
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(block.astype(dtype, copy=False))
        finite = np.isfinite(stored.reshape(len(stored), -1)).all(axis=1)
        digests = [hashlib.sha256(row.tobytes()).digest() for row in stored]
        stored = np.where(finite.reshape(-1, *[1] * (stored.ndim - 1)), stored, dtype.type(np.nan))
        not_finite += int((~finite).sum())
        ascending = np.argsort(rows)
        writer.write(
            rows[ascending],
            {"features": stored[ascending]},
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)[ascending],
            statuses=np.where(finite, Status.OK, Status.NON_FINITE).astype(np.uint8)[ascending],
            sizes=np.full(len(rows), stored[:1].nbytes, np.int64),
            mtimes=np.zeros(len(rows), np.int64),
        )
        _say(progress, len(target) + start + len(block), 2 * len(target))
    return not_finite


def _record(path: str, name: str | None, rows: int) -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine": EXTERNAL,
        "source": os.path.abspath(path),
        "notes": [f"{rows:,} rows of imported features" + (f": {name}" if name else "")],
        "versions": {"precompute": version_of("precompute") or "not installed"},
    }


def _say(progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
