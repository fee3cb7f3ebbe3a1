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

from precompute.cache.columns import (
    FORMAT,
    INT8,
    SAMPLE,
    VERSION,
    VIEW,
    VIEWS,
    Column,
    Layout,
    channel_axis,
    column_types,
    scales_shape,
)
from precompute.cache.key import key_of_bytes, spec_layers
from precompute.errors import CacheFormatError, CacheLockedError

MAX_ATTRIBUTE_BYTES = 64 * 1024  # HDF5's own limit for an attribute in an object header
MAX_SPEC_BYTES = 64_000  # what surely fits into one, its name and type included
KNOWN_FEATURES = frozenset({VIEWS, INT8})  # of the format, by the names that `requires` may hold
MAX_ID_BYTES = 64 * 1024
MAX_LAYERS = 64
MAX_PROVENANCE_BYTES = 16 * 1024 * 1024  # it is read at once; precompute writes 256 KiB
MAX_CLASS_BYTES = 64 * 1024
MAX_COLUMNS = 1024  # further ones
MAX_COLUMN_BYTES = 64 * 1024  # a row of one of them
COLUMN_TYPES = ("|u1", "<i8", "<f4", "<f8")  # and strings of fixed length


def read_layout(path: str) -> Layout:
    """Check the file at `path` without following any link in it, and say where its columns lie.

    Raises CacheFormatError where it is not a precompute cache, is truncated, or has a part this version does not know,
    and CacheLockedError where HDF5 locks are requested and another program holds one.
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
            with _open(path) as file:
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
                    "same: precompute itself takes no HDF5 locks.",
                ) from error
            if isinstance(error, OSError):
                raise _damaged(path, f"is not an HDF5 file that can be opened: {error}") from error
            raise _damaged(path, f"is damaged: its HDF5 structure cannot be read ({error})") from error


def _open(path: str) -> h5py.File:
    try:
        # No HDF5 lock: readers never block a writer, and read-only or network folders work.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking flag values" not in str(error):
            raise
        return h5py.File(path, "r")  # this process has it open by h5py, which decides for both


def _still_there(path: str, before: os.stat_result) -> bool:
    try:
        return os.path.samestat(before, os.stat(path))
    except OSError:
        return False


def _damaged(path: str, what: str) -> CacheFormatError:
    return CacheFormatError(
        f"{path} {what}.",
        hint="If a copy or download was truncated, download it again; else extract again to another output.",
    )


def _refuse(path: str, what: str) -> CacheFormatError:
    return CacheFormatError(
        f"{path} is not a precompute feature file: {what}.",
        hint="Use a file made by `precompute extract`; nothing in this one was read further.",
    )


def _check(path: str, file: h5py.File, status: os.stat_result) -> Layout:
    size = status.st_size
    spec, key, table, requires = _attributes(path, file)
    for group in ("features", "checksums", "samples"):
        _hard_link(path, file, group, h5py.h5g.GROUP)
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
    layers = _layers(path, file, spec, rows, size, eight_bits=_eight_bits(path, file, spec, requires))
    _check_views(path, spec, layers, requires)
    columns |= {column.name: column for several in layers.values() for column in several}
    further = _further(path, file, rows, size)
    columns |= {column.name: column for column, _ in further}
    classes = columns["classes"] = _column(path, file, "classes", size)
    if classes.dtype.kind != "S" or len(classes.shape) != 1 or classes.dtype.itemsize > MAX_CLASS_BYTES:
        raise _refuse(path, "`classes` is not a column of fixed-length strings")
    provenance = columns["provenance"] = _column(path, file, "provenance", size)
    if provenance.dtype.str != "|u1" or len(provenance.shape) != 1 or provenance.nbytes > MAX_PROVENANCE_BYTES:
        raise _refuse(path, f"`provenance` is not a block of at most {MAX_PROVENANCE_BYTES:,} bytes")
    _check_overlaps(path, columns)
    return Layout(
        spec=spec,
        key=key,
        table=table,
        layers=tuple(layers),
        columns=columns,
        further={column.name: digest for column, digest in further},
        file_size=size,
        identity=(status.st_dev, status.st_ino),
    )


def _attributes(path: str, file: h5py.File) -> tuple[dict[str, Any], str, str, list[str]]:
    """Spec, key, table digest and what it requires, once that, format and version are known to be ours."""
    if _text(path, file, "format") != FORMAT.encode():
        raise _refuse(path, f"its format is {_text(path, file, 'format')!r}")
    version = int(_attribute(path, file, "version", "i"))
    if version != VERSION:
        raise _newer(path, f"has format version {version}; this precompute reads version {VERSION}")
    try:
        requires = json.loads(_text(path, file, "requires"))
        if not isinstance(requires, list) or not all(isinstance(name, str) for name in requires):
            raise ValueError("it is not a list of names")
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"its attribute `requires` cannot be understood ({error})") from error
    if unknown := [name for name in requires if name not in KNOWN_FEATURES]:
        raise _newer(path, f"requires {', '.join(map(ascii, unknown))}, which this precompute does not know")
    stored, key, table = (_text(path, file, name) for name in ("spec", "key", "table"))
    try:
        spec = json.loads(stored)
        if len(stored) > MAX_SPEC_BYTES:
            raise ValueError(f"it has more than {MAX_SPEC_BYTES:,} bytes")
        if not isinstance(spec, dict) or key_of_bytes(stored) != key.decode("ascii"):
            raise ValueError("the key is not the SHA-256 of the spec")
        return spec, key.decode("ascii"), table.decode("ascii"), requires
    except (ValueError, TypeError, RecursionError) as error:
        raise _refuse(path, f"its spec cannot be trusted ({error})") from error


def _newer(path: str, what: str) -> CacheFormatError:
    return CacheFormatError(f"{path} {what}.", hint="Update precompute: pip install --upgrade precompute.")


def _attribute(path: str, item: h5py.File | h5py.Dataset, name: str, kind: str) -> Any:
    """A scalar attribute of this kind of type, read once its size is known to be small."""
    place = "" if isinstance(item, h5py.File) else f"`{item.name[1:]}`: "
    if name not in item.attrs:
        raise _refuse(path, f"{place}it has no `{name}` attribute")
    attribute = item.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype.kind != kind or attribute.dtype.itemsize > MAX_ATTRIBUTE_BYTES:
        raise _refuse(path, f"{place}its attribute `{name}` has an unexpected type")
    return item.attrs[name]


def _text(path: str, item: h5py.File | h5py.Dataset, name: str) -> bytes:
    return bytes(_attribute(path, item, name, "S"))


def _eight_bits(path: str, file: h5py.File, spec: dict[str, Any], requires: list[str]) -> bool:
    """Whether layers with positions are codes of 8 bits, with scales next to them."""
    if (INT8 in requires) != (spec.get("storage") == INT8):
        raise _refuse(path, f"its attribute `requires` does not say whether it holds 8 bits, but {requires}")
    if INT8 in requires:
        _hard_link(path, file, "scales", h5py.h5g.GROUP)
    return INT8 in requires


def _layers(
    path: str, file: h5py.File, spec: dict[str, Any], rows: int, size: int, *, eight_bits: bool
) -> dict[str, tuple[Column, ...]]:
    """Features, checksums and, of codes, scales of each layer in the order of `spec`, with which their attributes must
    agree."""
    if not 1 <= (count := len(file["features"])) <= MAX_LAYERS:  # asked before any name is read
        raise _refuse(path, f"it holds {count} layers")
    try:
        named = spec_layers(spec)
    except ValueError as error:
        raise _refuse(path, f"its spec does not say what its layers are: {error}") from error
    if set(file["features"]) != named.keys():
        raise _refuse(path, f"it does not hold the layers that its spec names: {', '.join(map(ascii, named))}")
    coded = {layer for layer, (axes, _) in named.items() if eight_bits and channel_axis(axes) is not None}
    if eight_bits and not coded:
        raise _refuse(path, "its attribute `requires` names int8, and none of its layers has channels with positions")
    layers: dict[str, tuple[Column, ...]] = {}
    for layer, (axes, pooling) in named.items():
        features = _column(path, file, f"features/{layer}", size)
        sums = _column(path, file, f"checksums/{layer}", size)
        shaped = len(features.shape) >= 2 and features.shape[0] == rows and all(features.shape)
        if features.dtype.str not in (("|u1",) if layer in coded else ("<f2", "<f4")) or not shaped:
            raise _refuse(path, f"`features/{layer}` is {features.dtype} {features.shape}")
        if sums.dtype.str != "<u8" or sums.shape != (rows,):
            raise _refuse(path, f"`checksums/{layer}` is {sums.dtype} {sums.shape}")
        dataset = file[f"features/{layer}"]
        said = _text(path, dataset, "axes"), _text(path, dataset, "pooling")
        if said != (" ".join((SAMPLE, *axes)).encode(), pooling.encode()):
            raise _refuse(path, f"axes and pooling of `features/{layer}` are not those that its spec names")
        if len(axes) != len(features.shape) - 1:
            raise _refuse(path, f"`features/{layer}` has {len(features.shape)} dimensions, and its axes are other ones")
        layers[layer] = features, sums
        if layer in coded:
            layers[layer] += (_scales(path, file, features, axes, size),)
    return layers


def _scales(path: str, file: h5py.File, features: Column, axes: tuple[str, ...], size: int) -> Column:
    scales = _column(path, file, features.name.replace("features", "scales", 1), size)
    wanted = (features.shape[0], *(scales_shape(features.shape[1:], axes) or ()))
    if scales.dtype.str != "<f4" or scales.shape != wanted:
        raise _refuse(path, f"`{scales.name}` is {scales.dtype} {scales.shape}, not float32 {wanted}")
    return scales


def _check_views(path: str, spec: dict[str, Any], layers: dict[str, tuple[Column, ...]], requires: list[str]) -> None:
    """Refuse a file whose axes of views are not what its `spec` and its `requires` say."""
    axes = [named for named, _ in spec_layers(spec).values()]
    if any(VIEW in named[1:] for named in axes) or len({named[0] == VIEW for named in axes}) > 1:
        raise _refuse(path, "views are the second axis of all of its layers, or of none")
    if (axes[0][0] == VIEW) != (VIEWS in requires):
        raise _refuse(path, f"its attribute `requires` does not say whether it holds views, but {requires}")
    found = {features.shape[1] for features, *_ in layers.values()} if VIEWS in requires else {1}
    short = VIEWS in requires and (1 in found or any(len(named) < 2 for named in axes))
    if found != {spec.get("views", 1)} or short:
        raise _refuse(path, f"its layers hold {', '.join(map(str, sorted(found)))} views, and its spec has other words")


def _further(path: str, file: h5py.File, rows: int, size: int) -> list[tuple[Column, str]]:
    """Columns under /columns, where there are any, and the digest that each of them says it has."""
    if not file.id.links.exists(b"/columns"):
        return []
    _hard_link(path, file, "columns", h5py.h5g.GROUP)
    if (count := len(file["columns"])) > MAX_COLUMNS:
        raise _refuse(path, f"it holds {count} further columns")
    found = []
    for name in sorted(file["columns"]):
        column = _column(path, file, f"columns/{name}", size)
        known = column.dtype.str in COLUMN_TYPES or column.dtype.kind == "S"
        shaped = len(column.shape) in (1, 2) and column.shape[0] == rows and all(column.shape)
        if not known or not shaped or column.row_bytes > MAX_COLUMN_BYTES:
            raise _refuse(path, f"`columns/{name}` is {column.dtype} {column.shape}")
        found.append((column, _text(path, file[column.name], "digest").decode("ascii", "replace")))
    return found


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
    if h5py.check_enum_dtype(dtype) is not None:
        raise _refuse(path, f"`{name}` is an enum, not plain numbers")
    dtype = np.dtype(dtype.str) if dtype.kind == "S" else dtype  # without h5py's note of the character set
    if dataset.shape is None:
        raise _refuse(path, f"`{name}` has no shape")
    shape = tuple(int(extent) for extent in dataset.shape)
    offset = dataset.get_offset()
    column = Column(name, 0 if offset is None else int(offset), dtype, shape)
    if column.nbytes and (offset is None or column.offset + column.nbytes > size):
        raise CacheFormatError(
            f"{path} is truncated: `{name}` ends at byte {column.offset + column.nbytes:,}, the file has {size:,}.",
            hint="Download or copy the file again; if there is no intact copy, extract again to another output.",
        )
    return column


def _check_overlaps(path: str, columns: dict[str, Column]) -> None:
    used = sorted(
        (column.offset, column.offset + column.nbytes, column.name) for column in columns.values() if column.nbytes
    )
    for (_, end, first), (start, _, second) in pairwise(used):
        if start < end:
            raise _refuse(path, f"`{first}` and `{second}` overlap")
