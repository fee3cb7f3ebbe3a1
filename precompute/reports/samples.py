"""The samples behind a cache's rows, for code that shows some of them: found again where the cache was made from, and
compared with what its rows were computed from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from precompute.cache import Cache
from precompute.cache.reader import FOUND
from precompute.errors import PrecomputeError, SampleError, SourceError
from precompute.extraction.matching import positions
from precompute.extraction.rebuild import EXTERNAL
from precompute.inputs.kinds import files_of, modality_of_spec
from precompute.sources.base import Reading, Source, Table
from precompute.sources.folder import FolderSource
from precompute.sources.registry import kind_of, open_source
from precompute.sources.remote.address import is_address
from precompute.training.targets import Rows

CHANGED = "CHANGED"
"""The reason of a sample that is there and has other bytes than its row was computed from."""


class ShownSamples:
    """Samples of some rows of a cache, read from one source by their ids."""

    def __init__(self, cache: Cache, source: Source, of_row: dict[int, int]) -> None:
        self._digests, self._source, self._of_row = cache.column("samples/digest"), source, of_row
        self.name = source.name

    def read(self, row: int) -> bytes:
        """The bytes of a row's sample. Raises SampleError, also where these are not the bytes of then (CHANGED)."""
        there = self._of_row.get(row)
        if there is None:
            raise SampleError("not in the source", reason="VANISHED")
        data = self._source.read(there).data
        if hashlib.sha256(data).digest() != self._digests[row].tobytes():
            raise SampleError("it has changed", reason=CHANGED)
        return data


def recorded_source(cache: Cache) -> tuple[str, Reading] | None:
    """Where the samples of the last run came from, and how the source was read; None where the file does not say."""
    for record in reversed(cache.provenance):
        if not FOUND.isdisjoint(record) or not isinstance(record.get("source"), str):
            continue
        options = record.get("options")
        options = options if isinstance(options, dict) else {}
        root, columns = options.get("root"), options.get("columns")
        named = {str(k): str(v) for k, v in columns.items()} if isinstance(columns, dict) else {}
        return record["source"], Reading(root if isinstance(root, str) else None, named)
    return None


def find_samples(
    cache: Cache,
    rows: Rows,
    source: Any = None,
    *,
    root: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> ShownSamples:
    """The samples of these rows, in `source` or, where that is None, in the one that the cache records.

    A recorded source is opened where it is on this machine: a file from a stranger must not decide which hosts are
    asked. Raises SourceError, and UsageError for `root` and `columns` that the source does not know.
    """
    if source is not None:
        return _opened(cache, rows, source, Reading.of(root, columns))
    unit, found = cache.words.plural, recorded_source(cache)
    if cache.spec.get("backbone") == EXTERNAL:
        raise SourceError(f"The features were imported, and do not say where their {unit} are.", hint=_hint(unit))
    if found is None:
        raise SourceError(f"The cache does not say where its {unit} are.", hint=_hint(unit))
    name, reading = found
    if root is not None or columns:
        reading = Reading.of(root, columns)
    shown = os.path.basename(name.rstrip("/")) or name
    if is_address(name) or (reading.root is not None and is_address(reading.root)):
        raise SourceError(f"The {unit} are in an object store, which is read when it is named.", hint=_hint(unit))
    is_pattern = any(mark in os.path.basename(name) for mark in "{*[") and os.path.isdir(os.path.dirname(name) or ".")
    if not (os.path.isabs(name) and (os.path.exists(name) or is_pattern)):
        raise SourceError(f"The {unit} are no longer where the cache was made from, in {shown}.", hint=_hint(unit))
    try:
        return _opened(cache, rows, name, reading)
    except PrecomputeError as error:  # which may name folders of the machine that the report was made on
        raise SourceError(error.message.replace(name, shown), hint=_hint(unit)) from error


def _hint(unit: str) -> str:
    return f"Say where the {unit} are: --source SOURCE"


def _opened(cache: Cache, rows: Rows, source: Any, reading: Reading) -> ShownSamples:
    ids = cache.column("samples/id")
    if isinstance(source, str | os.PathLike) and kind_of(os.fsdecode(source)).by_path and not reading.given():
        folder = _in_folder(cache, rows, os.fsencode(source))
        if folder is not None:
            return folder
    samples = open_source(source, files_of(modality_of_spec(cache.spec)), reading=reading)
    places = positions(samples.table.ids, ids[rows])
    of_row = {row: place for row, place in zip(rows.tolist(), places.tolist(), strict=True) if place >= 0}
    return ShownSamples(cache, samples, of_row)


def _in_folder(cache: Cache, rows: Rows, root: bytes) -> ShownSamples | None:
    """Of a folder the wanted files alone are looked for: it may hold millions. None for what is no folder."""
    if not os.path.isdir(root):
        return None
    ids = cache.column("samples/id")
    inside = np.array([row for row in rows.tolist() if not _leads_out(bytes(ids[row]))], np.int64)
    zeros = np.zeros(len(inside), np.int64)
    table = Table(ids[inside], zeros, zeros, zeros.astype(np.int32), zeros.astype(np.uint8), ())
    return ShownSamples(cache, FolderSource(root, table), {row: place for place, row in enumerate(inside.tolist())})


def _leads_out(identity: bytes) -> bool:
    """Whether a file that may come from a stranger names a path that is not below the source."""
    return not identity or identity.startswith(b"/") or b".." in identity.split(b"/")


def why(error: PrecomputeError) -> str:
    """What is wrong and what to give, in one line."""
    return " ".join(filter(None, (error.message, error.hint)))
