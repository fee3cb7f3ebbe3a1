"""Compare a cache with the files it was made from, by their bytes."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache
from precompute.errors import SampleError
from precompute.extraction.matching import positions
from precompute.inputs.kinds import files_of, modality_of_spec
from precompute.sources.base import Reading, Source
from precompute.sources.registry import open_source
from precompute.system import cores

READ_AHEAD = 4  # files for each thread


@dataclass(frozen=True)
class SourceComparison:
    """Ids, ascending. changed: other bytes than those the row was made from · gone: no longer in the source, or not
    readable · new: in the source but not in the cache."""

    changed: tuple[str, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def same(self) -> bool:
        return not (self.changed or self.gone or self.new)


def compare_source(
    cache: Cache,
    source: str | os.PathLike[str] | Source,
    *,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
    root: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> SourceComparison:
    """Read every file of `source` that `cache` has a row for and compare its SHA-256 with the row's.

    Size and modification time are not looked at. `progress` is called with a number of rows. source, root, columns: see
    `extract`. Raises SourceError where the source is missing or holds no such samples.
    """
    samples = open_source(source, files_of(modality_of_spec(cache.spec)), reading=Reading.of(root, columns))
    digests = cache.column("samples/digest")
    ids = cache.column("samples/id")
    rows = positions(samples.table.ids, ids)

    def differs(row: int) -> bool | None:
        """None where the file cannot be read."""
        try:
            data = samples.read(int(rows[row])).data
        except SampleError:
            return None
        return bool(hashlib.sha256(data).digest() != digests[row].tobytes())

    changed, gone = list[int](), np.flatnonzero(rows < 0).tolist()
    threads = workers or cores()
    pending: deque[tuple[int, Future[bool | None]]] = deque()
    todo = _in_order(samples, rows)
    if progress is not None and gone:
        progress(len(gone))
    with ThreadPoolExecutor(threads) as pool:
        while True:
            while len(pending) < READ_AHEAD * threads and (following := next(todo, None)) is not None:
                pending.append((following, pool.submit(differs, following)))
            if not pending:
                break
            row, future = pending.popleft()
            answer = future.result()
            if answer is None:
                gone.append(row)
            elif answer:
                changed.append(row)
            if progress is not None:
                progress(1)
    names = {row: os.fsdecode(bytes(ids[row])) for row in (*changed, *gone)}
    new = [os.fsdecode(bytes(name)) for name in samples.table.ids[~np.isin(samples.table.ids, ids)]]
    ordered = [tuple(names[row] for row in sorted(found)) for found in (changed, gone)]
    return SourceComparison(ordered[0], ordered[1], tuple(new))


def _in_order(samples: Source, rows: NDArray[np.int64]) -> Iterator[int]:
    """Rows of a cache that the source has, in the order in which it reads them best. rows: theirs in the source."""
    there = np.flatnonzero(rows >= 0)
    row_of = np.full(len(samples), -1, dtype=np.int64)
    row_of[rows[there]] = there
    for part in samples.order(np.sort(rows[there])):
        yield from row_of[part].tolist()
