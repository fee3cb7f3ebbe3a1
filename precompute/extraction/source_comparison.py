"""Compare a cache with the files it was made from, by their bytes."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from precompute.cache import Cache
from precompute.errors import SampleError
from precompute.extraction.matching import positions
from precompute.inputs.images.formats import IMAGES
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

    Size and modification time are not looked at. `progress` is called with 1 for each row. source, root, columns: see
    `extract`. Raises SourceError where the source is missing or holds no images.
    """
    samples = open_source(source, IMAGES, reading=Reading.of(root, columns))
    digests = cache.column("samples/digest")
    ids = cache.column("samples/id")
    rows = positions(samples.table.ids, ids)

    def differs(row: int) -> bool | None:
        """None where the file is not listed or cannot be read."""
        if rows[row] < 0:
            return None
        try:
            data = samples.read(int(rows[row])).data
        except SampleError:
            return None
        return bool(hashlib.sha256(data).digest() != digests[row].tobytes())

    changed, gone = [], []
    threads = workers or cores()
    pending: deque[Future[bool | None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for row in range(len(cache)):
            while len(pending) < READ_AHEAD * threads and (following := row + len(pending)) < len(cache):
                pending.append(pool.submit(differs, following))
            answer = pending.popleft().result()
            if answer is None:
                gone.append(os.fsdecode(bytes(ids[row])))
            elif answer:
                changed.append(os.fsdecode(bytes(ids[row])))
            if progress is not None:
                progress(1)
    new = [os.fsdecode(bytes(name)) for name in samples.table.ids[~np.isin(samples.table.ids, ids)]]
    return SourceComparison(tuple(changed), tuple(gone), tuple(new))
