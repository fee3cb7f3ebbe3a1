"""Rows that only a file in progress holds outlive it, until the run that may still need them is finished.

A run is interrupted, pictures are renamed, and the next run lays out another file: its rows for the renamed pictures
are in the old file in progress alone, found again only when the pictures have been read. Should that run be interrupted
too, they must not be gone. So they are put aside first, in a feature file whose samples are named by their digests.
"""

from __future__ import annotations

import contextlib
import os
from binascii import hexlify
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, Layer, RowWriter, Samples, create
from precompute.errors import CacheError
from precompute.extraction.matching import Plan, copy_rows, lasting
from precompute.extraction.output import CacheOutput, remove_leftover
from precompute.extraction.owners import DigestIndex
from precompute.system.output import sync_folder


def keep_rest(
    output: CacheOutput, plan: Plan, spec: dict[str, Any], layers: Mapping[str, Layer], missing: NDArray[np.int64]
) -> None:
    """Put aside what the file in progress, about to be replaced, holds and nothing else does.

    missing: rows of the new file that were not copied from an older one. Raises DiskSpaceError.
    """
    parts = _rest(output, plan, missing)
    if not any(len(rows) for old, rows in parts if old.path == output.partial):
        return  # what was put aside earlier stays as it is
    digests = np.concatenate([old.column("samples/digest")[rows] for old, rows in parts])
    order = np.argsort(_as_strings(digests))
    sizes, times = (
        np.concatenate([old.column(f"samples/{name}")[rows] for old, rows in parts]) for name in ("size", "mtime_ns")
    )
    samples = Samples(
        ids=np.frombuffer(hexlify(digests[order].data), dtype="S64"),
        sizes=sizes[order],
        mtimes=times[order],
        labels=np.full(len(order), -1, dtype=np.int32),
        splits=np.zeros(len(order), dtype=np.uint8),
        classes=(),
    )
    fresh = output.fresh_kept
    remove_leftover(fresh)
    try:
        layout = create(fresh, spec=spec, samples=samples, layers=layers)
        places = np.split(np.argsort(order), np.cumsum([len(rows) for _, rows in parts])[:-1])
        with RowWriter(fresh, layout) as writer:
            for (old, rows), place in zip(parts, places, strict=True):
                by_place = np.argsort(place)  # ascending, so that neighbours are written together
                copy_rows(old, rows[by_place], writer, place[by_place], samples)
            writer.sync()
        os.replace(fresh, output.kept)
        sync_folder(output.path)
    finally:
        with contextlib.suppress(OSError, CacheError):  # the error that ended the run is the one to report
            remove_leftover(fresh)


def drop_kept(output: CacheOutput) -> None:
    """The finished file is there: nothing put aside is needed any more, nor what a crash has left of it."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(output.kept)
    with contextlib.suppress(CacheError):  # somebody else's by now, and the name is not needed any more either
        remove_leftover(output.fresh_kept)


def _rest(output: CacheOutput, plan: Plan, missing: NDArray[np.int64]) -> list[tuple[Cache, NDArray[np.int64]]]:
    """Rows, each picture once, that are neither in the new file nor in the finished one."""
    taken = np.setdiff1d(np.flatnonzero(plan.origin >= 0), missing)
    finished = (output.path, *output.reuse)
    known = [_index(old, np.flatnonzero(lasting(old))) for old in plan.olds if old.path in finished]
    for number, old in enumerate(plan.olds):
        known.append(_index(old, plan.origin_row[taken[plan.origin[taken] == number]]))
    parts = []
    for old in plan.olds:
        if old.path in finished:
            continue
        index = _index(old, np.flatnonzero(lasting(old)))
        rows = index.rows
        for other in known:
            rows = rows[~other.holds(old.column("samples/digest"), rows)]
        known.append(index)
        parts.append((old, rows))
    return parts


def _index(old: Cache, rows: NDArray[np.int64]) -> DigestIndex:
    return DigestIndex(old.column("samples/digest"), rows)


def _as_strings(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """(k, 32) bytes as (k,) values that sort and compare; trailing NULs are no loss at a fixed width."""
    return np.ascontiguousarray(digests).view("S32").reshape(len(digests))
