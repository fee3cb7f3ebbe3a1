"""Check a file that may come from a stranger, without following any link in it, and say where its columns lie."""

from __future__ import annotations

import errno
import json
import os
import stat
from itertools import pairwise
from typing import Any

import h5py
import numpy as np

from precompute.cache.columns import FORMAT, VERSION, Column, Layout, column_types
from precompute.cache.key import key_of
from precompute.errors import CacheFormatError, CacheLockedError

MAX_ATTRIBUTE_BYTES = 64 * 1024  # HDF5's own limit for an attribute in an object header
MAX_ID_BYTES = 64 * 1024
MAX_LAYERS = 64
MAX_PROVENANCE_BYTES = 16 * 1024 * 1024  # it is read at once; precompute writes 256 KiB
MAX_CLASS_BYTES = 64 * 1024


def read_layout(path: str) -> Layout:
    """Check the file at `path` without following any link in it, and say where its columns lie.

    Raises CacheFormatError where it is not a precompute cache, is cut short, or has a part this version does not know,
    and CacheLockedError where HDF5 locks are asked for and another program holds one.
    """
    while True:
        try:
            before = os.stat(path)
        except FileNotFoundError as error:
            raise CacheFormatError(
                f"{path} does not exist.", hint="Make it with `precompute extract SOURCE -b BACKBONE -o OUT.h5`."
            ) from error
        except OSError as error:
            raise _damaged(path, f"is not an HDF5 file that can be opened: {error.strerror}") from error
        if not stat.S_ISREG(before.st_mode):
            raise CacheFormatError(f"{path} is not an ordinary file.", hint="Name a file made by `precompute extract`.")
        try:
            # No HDF5 lock: readers never block a writer, and read-only or network folders work.
            with h5py.File(path, "r", locking=False) as file:
                return _check(path, file, os.fstat(file.id.get_vfd_handle()))
        except CacheFormatError:
            raise
        except Exception as error:  # h5py raises whatever a damaged structure leads libhdf5 to
            # libhdf5 looks the name up more than once; a writer's rename in between is no damage.
            if not _still_there(path, before):
                continue
            if isinstance(error, OSError) and error.errno == errno.EAGAIN:  # only where HDF5_USE_FILE_LOCKING asks
                raise CacheLockedError(
                    f"{path} is locked: another program has it open for writing.",
                    hint="Close it there, or wait. Without HDF5_USE_FILE_LOCKING in the environment it is read all the "
                    "same: precompute takes no HDF5 locks of its own.",
                ) from error
            if isinstance(error, OSError):
                raise _damaged(path, f"is not an HDF5 file that can be opened: {error}") from error
            raise _damaged(path, f"is damaged: its HDF5 structure cannot be read ({error})") from error


def _still_there(path: str, before: os.stat_result) -> bool:
    try:
        return os.path.samestat(before, os.stat(path))
    except OSError:
        return False


def _damaged(path: str, what: str) -> CacheFormatError:
    return CacheFormatError(
        f"{path} {what}.",
        hint="If a copy or download was cut short, fetch it again; else extract again to another output.",
    )


def _refuse(path: str, what: str) -> CacheFormatError:
    return CacheFormatError(
        f"{path} is not a precompute feature file: {what}.",
        hint="Use a file made by `precompute extract`; nothing in this one was read further.",
    )


def _check(path: str, file: h5py.File, status: os.stat_result) -> Layout:
    size = status.st_size
    spec, key, table = _attributes(path, file)
    for group in ("features", "checksums", "samples"):
        _hard_link(path, file, group, h5py.h5g.GROUP)
    if not 1 <= (count := len(file["features"])) <= MAX_LAYERS:  # asked before any name is read
        raise _refuse(path, f"it holds {count} layers")
    layers = tuple(sorted(file["features"]))
    ids = _column(path, file, "samples/id", size)
    if ids.dtype.kind != "S" or ids.dtype.itemsize > MAX_ID_BYTES or len(ids.shape) != 1:
        raise _refuse(path, "`samples/id` is not a column of fixed-length strings")
    rows = ids.shape[0]
    if not rows:
        raise _refuse(path, "it holds no samples")
    columns = {}
    for name, (shape, dtype) in column_types(rows, ids.dtype.itemsize).items():
        columns[name] = column = _column(path, file, name, size)
        if column.shape != shape or column.dtype != dtype:
            raise _refuse(path, f"`{name}` is {column.dtype} {column.shape}, not {dtype} {shape}")
        if _enum(column.dtype) != _enum(dtype):
            raise _refuse(path, f"`{name}` is not an enum of the values that the format knows")
    for layer in layers:
        features = columns[f"features/{layer}"] = _column(path, file, f"features/{layer}", size)
        sums = columns[f"checksums/{layer}"] = _column(path, file, f"checksums/{layer}", size)
        shaped = len(features.shape) >= 2 and features.shape[0] == rows and all(features.shape)
        if features.dtype.str not in ("<f2", "<f4") or not shaped:
            raise _refuse(path, f"`features/{layer}` is {features.dtype} {features.shape}")
        if sums.dtype.str != "<u8" or sums.shape != (rows,):
            raise _refuse(path, f"`checksums/{layer}` is {sums.dtype} {sums.shape}")
    classes = columns["classes"] = _column(path, file, "classes", size)
    if classes.dtype.kind != "S" or len(classes.shape) != 1 or classes.dtype.itemsize > MAX_CLASS_BYTES:
        raise _refuse(path, "`classes` is not a column of fixed-length strings")
    provenance = columns["provenance"] = _column(path, file, "provenance", size)
    if provenance.dtype.str != "|u1" or len(provenance.shape) != 1 or provenance.nbytes > MAX_PROVENANCE_BYTES:
        raise _refuse(path, f"`provenance` is not a block of at most {MAX_PROVENANCE_BYTES:,} bytes")
    _check_overlaps(path, columns)
    identity = status.st_dev, status.st_ino
    return Layout(spec=spec, key=key, table=table, layers=layers, columns=columns, file_size=size, identity=identity)


def _attributes(path: str, file: h5py.File) -> tuple[dict[str, Any], str, str]:
    """Spec, key and table digest, once format and version are known to be ours."""
    for name in ("format", "version", "key", "spec", "table"):
        if name not in file.attrs:
            raise _refuse(path, f"it has no `{name}` attribute")
        attribute = file.attrs.get_id(name)
        kind = "i" if name == "version" else "S"
        if attribute.shape != () or attribute.dtype.kind != kind or attribute.dtype.itemsize > MAX_ATTRIBUTE_BYTES:
            raise _refuse(path, f"its attribute `{name}` has an unexpected type")
    if file.attrs["format"] != np.bytes_(FORMAT):
        raise _refuse(path, f"its format is {file.attrs['format']!r}")
    version = int(file.attrs["version"])
    if version != VERSION:
        raise CacheFormatError(
            f"{path} has format version {version}; this precompute reads version {VERSION}.",
            hint="Update precompute: pip install --upgrade precompute.",
        )
    try:
        spec = json.loads(bytes(file.attrs["spec"]))
        key, table = (bytes(file.attrs[name]).decode("ascii") for name in ("key", "table"))
        if not isinstance(spec, dict) or key_of(spec) != key:
            raise ValueError("the key is not the SHA-256 of the spec")
    except (ValueError, TypeError, RecursionError) as error:
        raise _refuse(path, f"its spec cannot be trusted ({error})") from error
    return spec, key, table


def _enum(dtype: np.dtype[Any]) -> dict[str, int] | None:
    members = h5py.check_enum_dtype(dtype)
    return None if members is None else dict(members)


def _hard_link(path: str, file: h5py.File, name: str, kind: int) -> None:
    """Look at the link before anything behind it is opened: soft and external links are refused by name."""
    parent = ""
    for part in name.split("/"):
        full = f"{parent}/{part}"
        if not file.id.links.exists(full.encode()):
            raise _refuse(path, f"`{name}` is missing")
        if file.id.links.get_info(full.encode()).type != h5py.h5l.TYPE_HARD:
            raise _refuse(path, f"`{name}` is a link to somewhere else")
        parent = full
    if h5py.h5g.get_objinfo(file.id, name.encode()).type != kind:
        raise _refuse(path, f"`{name}` is not a {'group' if kind == h5py.h5g.GROUP else 'dataset'}")


def _column(path: str, file: h5py.File, name: str, size: int) -> Column:
    _hard_link(path, file, name, h5py.h5g.DATASET)
    dataset = h5py.h5d.open(file.id, name.encode())
    creation = dataset.get_create_plist()
    if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_nfilters() or creation.get_external_count():
        raise _refuse(path, f"`{name}` is not stored contiguously inside the file")
    try:
        dtype = dataset.dtype
    except (TypeError, ValueError) as error:
        raise _refuse(path, f"`{name}` has a type that is not understood") from error
    if dtype.hasobject:
        raise _refuse(path, f"`{name}` holds references or variable-length values")
    if dataset.shape is None:
        raise _refuse(path, f"`{name}` has no shape")
    shape = tuple(int(extent) for extent in dataset.shape)
    offset = dataset.get_offset()
    column = Column(name, 0 if offset is None else int(offset), dtype, shape)
    if column.nbytes and (offset is None or column.offset + column.nbytes > size):
        raise CacheFormatError(
            f"{path} is cut short: `{name}` ends at byte {column.offset + column.nbytes:,}, the file has {size:,}.",
            hint="Fetch or copy the file again; if there is no whole copy, extract again to another output.",
        )
    return column


def _check_overlaps(path: str, columns: dict[str, Column]) -> None:
    used = sorted(
        (column.offset, column.offset + column.nbytes, column.name) for column in columns.values() if column.nbytes
    )
    for (_, end, first), (start, _, second) in pairwise(used):
        if start < end:
            raise _refuse(path, f"`{first}` and `{second}` overlap")
