"""Lay a feature file out completely, before the first feature exists. From then on libhdf5 never writes to it."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from precompute import system
from precompute.cache import provenance
from precompute.cache.check import MAX_SPEC_BYTES, read_layout
from precompute.cache.checksum import bytes_of, column_digest, table_digest
from precompute.cache.columns import (
    FORMAT,
    INT8,
    PROVENANCE_BYTES,
    SAMPLE,
    VERSION,
    VIEW,
    VIEWS,
    Layer,
    Layout,
    Samples,
    column_types,
)
from precompute.cache.key import Spec, canonical_json, key_of, spec_layers
from precompute.cache.provenance import Record
from precompute.cache.status import SPLITS, Status
from precompute.errors import CacheError, DiskSpaceError, naming

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LARGE_FILE = 128 * 1024 * 1024  # bytes a layer; the gaps that its alignment leaves make it 4% larger at most
TEXT_ROWS = 65_536  # whose characters are looked at at once
FURTHER_TYPES = {"b": ("u1",), "u": ("u1", "i8"), "i": ("i8",), "f": ("f4", "f8")}
"""What numbers of further columns are stored as, by NumPy's kinds: the first that holds them all."""

MEANINGS: dict[str, tuple[str, ...]] = {"samples/split": SPLITS, "samples/status": tuple(each.name for each in Status)}
"""What the codes of a column stand for, by their numbers from 0 on."""

Columns = Mapping[str, NDArray[Any]]


def _without_times(kind: Any) -> Any:
    """Properties of a new object that hold no time of its making: the same run gives the same bytes."""
    creation = h5py.h5p.create(kind)
    creation.set_obj_track_times(False)
    return creation


def _timeless(path: str, alignment: int) -> h5py.File:
    """A new file, whose datasets begin at multiples of `alignment`.

    By way of h5py's lower level: older releases of `h5py.File` cannot leave out the times.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_libver_bounds(h5py.h5f.LIBVER_V18, h5py.h5f.LIBVER_V18)
    access.set_alignment(1, alignment)
    creation = _without_times(h5py.h5p.FILE_CREATE)
    return h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_EXCL, creation, access))


def _create_dataset(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> h5py.Dataset:
    creation = _without_times(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind = h5py.h5t.py_create(dtype, logical=True)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), creation))


def _set_text(item: h5py.File | h5py.Dataset, name: str, text: str) -> None:
    stored = text.encode()
    item.attrs.create(name, np.bytes_(stored), dtype=h5py.string_dtype("utf-8", max(1, len(stored))))


def _text_type(values: NDArray[np.bytes_]) -> np.dtype[Any]:
    """The type of fixed-length strings, marked as UTF-8 where all of them are, so that clients decode them."""
    width = max(1, values.dtype.itemsize)
    for start in range(0, len(values), TEXT_ROWS):
        block = values[start : start + TEXT_ROWS]
        beyond_ascii = (block.reshape(-1).view("u1").reshape(block.size, -1) > 127).any(axis=1)
        for value in block.reshape(-1)[beyond_ascii].tolist():
            try:
                value.decode()
            except UnicodeDecodeError:
                return np.dtype(f"S{width}")
    kind: np.dtype[Any] = h5py.string_dtype("utf-8", width)
    return kind


def create(
    path: str,
    *,
    spec: Spec,
    samples: Samples,
    layers: Mapping[str, Layer],
    columns: Columns | None = None,
    records: list[Record] | None = None,
) -> Layout:
    """Write a complete, empty feature file at `path`, its space reserved on disk, and flush it.

    `layers` are those that `spec` names. `columns` are further columns of the source by their names: (N,) or (N, k)
    strings of bytes, bool, integers or floats. Every row starts as pending. `records` is the provenance that rows of an
    older file bring along. `path` must not exist.
    Raises DiskSpaceError where the file system lacks the room, CacheError where `spec` is too long, ValueError for
    layers that are not those of `spec`, and for columns that cannot be stored.
    """
    _check_spec(path, spec, layers)
    further = {name: _stored(name, values, len(samples)) for name, values in (columns or {}).items()}
    kinds = _column_types(samples, layers, further)
    ids = np.ascontiguousarray(samples.ids, dtype=kinds["samples/id"][1])
    labels = np.ascontiguousarray(samples.labels, dtype="<i4")
    splits = np.ascontiguousarray(samples.splits, dtype="u1")
    classes = np.array(samples.classes, dtype=f"S{max([1, *map(len, samples.classes)])}")
    needed = bytes_needed(samples, layers, further)
    _check_room(os.statvfs(os.path.dirname(path) or "."), path, needed)
    # Alignment from the first byte on: no dataset shares a page with metadata or with another dataset. The wider one
    # lets batches begin where the page cache's large pages do: pwrite takes 4 to 9% less time (measured).
    interval = 4096 if needed < LARGE_FILE * len(layers) else 256 * 1024
    with _timeless(path, interval) as file:
        _set_text(file, "format", FORMAT)
        file.attrs["version"] = np.int64(VERSION)
        _set_text(file, "requires", json.dumps(_required(layers)))
        _set_text(file, "key", key_of(spec))
        _set_text(file, "spec", canonical_json(spec))
        _set_text(file, "table", table_digest(ids, labels, splits, classes))
        for group in sorted({name.partition("/")[0] for name in kinds if "/" in name}):
            h5py.h5g.create(file.id, group.encode(), gcpl=_without_times(h5py.h5p.GROUP_CREATE))
        kinds["samples/id"] = (ids.shape, _text_type(ids))
        kinds["classes"] = (classes.shape, _text_type(classes))
        kinds["provenance"] = ((PROVENANCE_BYTES,), np.dtype("u1"))
        datasets = {name: _create_dataset(file, name, *kind) for name, kind in kinds.items()}
        for name, layer in layers.items():
            _set_text(datasets[f"features/{name}"], "axes", " ".join((SAMPLE, *layer.axes)))
            _set_text(datasets[f"features/{name}"], "pooling", layer.pooling)
        for name, words in MEANINGS.items():
            datasets[name].attrs["flag_values"] = np.arange(len(words), dtype="u1")
            _set_text(datasets[name], "flag_meanings", " ".join(words))
        for name, values in further.items():
            _set_text(datasets[f"columns/{name}"], "digest", column_digest(name, values))
    layout = read_layout(path)
    with naming(path), open(path, "r+b") as raw:
        reserve(raw.fileno(), path, layout.file_size)
        for name, values in (
            ("samples/id", ids),
            ("samples/size", samples.sizes),
            ("samples/mtime_ns", samples.mtimes),
            ("samples/label", labels),
            ("samples/split", splits),
            ("classes", classes),
            ("provenance", np.frombuffer(provenance.pack(records or [], PROVENANCE_BYTES), dtype=np.uint8)),
            *((f"columns/{name}", values) for name, values in further.items()),
        ):
            column = layout.columns[name]
            raw.seek(column.offset)
            raw.write(bytes_of(np.asarray(values, dtype=column.dtype)))  # not a copy of it
        raw.flush()
        system.sync(raw.fileno())
    return layout


def _required(layers: Mapping[str, Layer]) -> list[str]:
    """What a reader must know."""
    eight_bits = any(layer.scales for layer in layers.values())
    return [*([VIEWS] if holds_views(layers) else []), *([INT8] if eight_bits else [])]


def holds_views(layers: Mapping[str, Layer]) -> bool:
    """Whether the second axis of the features is one of views."""
    return any(layer.axes[:1] == (VIEW,) for layer in layers.values())


def column_digests(columns: Columns, rows: int) -> dict[str, str]:
    """What `Layout.further` of a file with these further columns is."""
    stored = {name: _stored(name, values, rows) for name, values in columns.items()}
    return {f"columns/{name}": column_digest(name, values) for name, values in stored.items()}


def bytes_needed(samples: Samples, layers: Mapping[str, Layer], columns: Columns | None = None) -> int:
    """Size of the file that `create` would make, less its structure and the gaps before its datasets."""
    kinds = _column_types(samples, layers, columns or {})
    return PROVENANCE_BYTES + sum(kind.itemsize * math.prod(shape) for shape, kind in kinds.values())


def _column_types(
    samples: Samples, layers: Mapping[str, Layer], columns: Columns
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    rows = len(samples)
    kinds = column_types(rows, max(1, samples.ids.dtype.itemsize))
    for name, layer in layers.items():
        kinds[f"features/{name}"] = ((rows, *layer.shape), layer.dtype.newbyteorder("<"))
        if layer.scales is not None:
            kinds[f"scales/{name}"] = ((rows, *layer.scales), np.dtype("<f4"))
        kinds[f"checksums/{name}"] = ((rows,), np.dtype("<u8"))
    for name, values in columns.items():
        kinds[f"columns/{name}"] = (values.shape, _text_type(values) if values.dtype.kind == "S" else values.dtype)
    return kinds


def _check_spec(path: str, spec: Spec, layers: Mapping[str, Layer]) -> None:
    if len(canonical_json(spec)) > MAX_SPEC_BYTES:
        raise CacheError(
            f"The settings of {path} take {len(canonical_json(spec)):,} bytes as JSON, more than {MAX_SPEC_BYTES:,}.",
            hint="HDF5 stores no longer attribute. Take fewer layers, or split them over several files.",
        )
    if spec_layers(spec) != {name: (layer.axes, layer.pooling) for name, layer in layers.items()}:
        raise ValueError(f"The layers of {path} must be those of its spec, with the same axes and pooling.")
    for name, layer in layers.items():
        if "/" in name or len(layer.axes) != len(layer.shape):
            raise ValueError(f"The layer {name!r} must have a name without / and one word for each of its axes.")
        if layer.dtype == np.uint8 and (layer.scales is None or spec.get("storage") != INT8):
            raise ValueError(
                f"The layer {name!r} of 8 bits needs channels with positions, and storage {INT8!r} in spec."
            )


def _stored(name: str, values: NDArray[Any], rows: int) -> NDArray[Any]:
    """A further column as it is stored."""
    if not name or not name.isprintable() or "/" in name:
        raise ValueError(f"A column's name must be printable and without /. Got {name!r} instead.")
    if values.ndim not in (1, 2) or len(values) != rows or not values.size:
        raise ValueError(f"The column {name!r} must be ({rows},) or ({rows}, k). Got {values.shape} instead.")
    if values.dtype.kind == "S":
        return np.ascontiguousarray(values, dtype=f"S{max(1, values.dtype.itemsize)}")
    kind = next((kind for kind in FURTHER_TYPES.get(values.dtype.kind, ()) if np.can_cast(values.dtype, kind)), None)
    if kind is None:
        raise ValueError(f"The column {name!r} must hold bytes, bool, integers or floats. Got {values.dtype} instead.")
    return np.ascontiguousarray(values, dtype=np.dtype(kind).newbyteorder("<"))


def reserve(descriptor: int, path: str, size: int) -> None:
    """Reserve `size` bytes for the open file, so that a full disk is known before the work starts.

    Raises DiskSpaceError with the bytes needed and free.
    """
    usage = os.fstatvfs(descriptor)
    _check_room(usage, path, size - os.fstat(descriptor).st_blocks * 512)
    try:
        system.reserve(descriptor, size)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise  # a disk that fails has no lack of room
        raise _no_room(usage, path, size, error.strerror) from error


def _check_room(usage: os.statvfs_result, path: str, needed: int) -> None:
    if needed > usage.f_bavail * usage.f_frsize:
        raise _no_room(usage, path, needed, os.strerror(errno.ENOSPC))


def _no_room(usage: os.statvfs_result, path: str, needed: int, reason: str | None) -> DiskSpaceError:
    free = usage.f_bavail * usage.f_frsize
    return DiskSpaceError(
        f"{path} needs {needed:,} bytes; {free:,} bytes are free there ({reason}).",
        hint="Free some space, choose an output on another disk, or store less: --dtype float16, --limit N.",
    )
