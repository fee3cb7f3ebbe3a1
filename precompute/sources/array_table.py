"""Ids, labels, splits and further columns that stand as arrays next to the samples -> a table in the order of ids."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.sources.array_files import ArrayFile
from precompute.sources.base import Table
from precompute.sources.labels import SPLIT_NAMES

TEXT_BYTES = 65_536  # of an id, a class name or a text, at most


def table_of(file: ArrayFile) -> tuple[Table, NDArray[np.intp]]:
    """The table, whose stamps are 0, and which row of `file` each of its rows is.

    `id` is unique, else rows are numbered; `label` is text or whole numbers, "" for none; `split` names a split.
    Raises SourceError.
    """
    rows = file.shape[0]
    given = {name: file.column(name) for name in file.columns}
    for name, values in given.items():
        if values.ndim == 0 or len(values) != rows:
            raise file.wrong(
                f"has {rows:,} rows of {file.main}, and {name!r} has the shape {values.shape}",
                "Give each array one entry for each row.",
            )
    ids = _text(file, "id", given.pop("id")) if "id" in given else _numbers(rows)
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        pair = sorted(order[twice[0] : twice[0] + 2].tolist())
        raise file.wrong(
            f"has the id {os.fsdecode(bytes(ordered[twice[0]]))!r} in row {pair[0]} and in row {pair[1]}",
            "Give each row its own id.",
        )
    labels, classes = np.full(rows, -1, np.int32), ()
    if "label" in given:
        names, found = np.unique(_text(file, "label", given.pop("label")), return_inverse=True)
        unlabelled = len(names) > 0 and names[0] == b""
        classes = tuple(names.tolist()[unlabelled:])
        labels = (found - unlabelled).astype(np.int32)
    splits = np.zeros(rows, np.uint8)
    if "split" in given:
        words, found = np.unique(_text(file, "split", given.pop("split")), return_inverse=True)
        codes = [_split(file, word) for word in words.tolist()]
        splits = np.array(codes, np.uint8)[found]
    further = {name: _further(file, name, values)[order] for name, values in given.items()}
    sizes, times = np.zeros((2, rows), np.int64)
    return Table(ordered, sizes, times, labels[order], splits[order], classes, further), order


def _numbers(rows: int) -> NDArray[np.bytes_]:
    return np.array([b"row/%0*d" % (len(str(rows - 1)), row) for row in range(rows)])


def _split(file: ArrayFile, word: bytes) -> int:
    if word.lower() in (b"", b"none"):
        return 0
    code = SPLIT_NAMES.get(word.lower())
    if code is None:
        known = ", ".join(name.decode() for name in SPLIT_NAMES)
        raise file.wrong(f"has the split {os.fsdecode(word)!r}", f"Known are {known}, and none.")
    return code


def _text(file: ArrayFile, name: str, values: NDArray[Any]) -> NDArray[np.bytes_]:
    """Text (n,) as bytes; whole numbers as their digits."""
    if values.ndim != 1 or values.dtype.kind not in "USiub":
        raise file.wrong(
            f"has {name!r} of the type {values.dtype} and shape {values.shape}; text or whole numbers (n,) are needed",
            "Convert it: np.array(values, dtype=str).",
        )
    stored = np.array([os.fsencode(str(value)) if not isinstance(value, bytes) else value for value in values.tolist()])
    if stored.dtype.itemsize > TEXT_BYTES or any(b"\0" in value for value in stored.tolist()):
        raise file.wrong(
            f"has an entry in {name!r} that is longer than {TEXT_BYTES:,} bytes or has a NUL in it", "Shorten it."
        )
    return stored


def _further(file: ArrayFile, name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "U" and values.ndim == 1:
        return _text(file, name, values)
    if values.ndim > 2 or values.dtype.kind not in "Sbiuf":
        raise file.wrong(
            f"has {name!r} of the type {values.dtype} and shape {values.shape}, which is not stored",
            "Leave it out of the file, or make it text or numbers (n,) or (n, k).",
        )
    return values
