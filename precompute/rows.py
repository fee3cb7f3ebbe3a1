"""Fill rows of a file in progress: run the backbone over images never seen, copy rows whose bytes are known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache, RowWriter, Status, open_cache
from precompute.engine import TorchEngine
from precompute.plan import copy_rows, lasting
from precompute.sources import Listing, ascii_name
from precompute.stream import Block, Decoded, forward
from precompute.transform import Transform

THIS_RUN = -1


@dataclass
class Step:
    """What one batch brought. failed: (id, status name, detail) of each sample that has no features."""

    done: int = 0
    computed: int = 0
    copied: int = 0
    failed: list[tuple[str, str, str]] = field(default_factory=list)


class RowRun:
    """One run over one file in progress.

    Byte-identical images are computed once: whichever thread reads their bytes first claims them by SHA-256, the
    others are copied from its row when that is written. Rows of older files are claimed before the run begins.
    """

    def __init__(
        self,
        listing: Listing,
        olds: tuple[Cache, ...],
        partial: str,
        writer: RowWriter,
        *,
        layer: str,
        shape: tuple[int, ...],
        storage: str,
    ) -> None:
        self.writer = writer
        self._listing = listing
        self._olds = olds
        self._partial = partial
        self._layer = layer
        self._shape = shape
        self._storage = np.dtype(storage)
        self._owners: dict[bytes, tuple[int, int]] = {}
        for number, old in enumerate(olds):
            digests = old.column("samples/digest")
            for row in np.flatnonzero(lasting(old)).tolist():
                self._owners.setdefault(digests[row].tobytes(), (number, row))

    def steps(self, rows: NDArray[np.int64], engine: TorchEngine, transform: Transform, workers: int) -> Iterator[Step]:
        """Fill `rows`, a batch at a time."""
        while len(rows):
            same: list[Decoded] = []
            for block in forward(self._listing, rows, engine, transform, workers=workers, claim=self._claim):
                same.extend(block.same)
                yield self._write(block)
            step, rows = self._copy(same)
            yield step

    def _claim(self, digest: bytes, row: int) -> bool:
        # dict.setdefault is one step under the interpreter lock, so two threads cannot both win.
        owner = self._owners.setdefault(digest, (THIS_RUN, row))
        return owner == (THIS_RUN, row)

    def _write(self, block: Block) -> Step:
        items = [*block.decoded, *block.failed]
        step = Step(done=len(items), computed=len(block.decoded))
        if not items:
            return step
        values = np.full((len(items), *self._shape), np.nan, dtype=self._storage)
        if block.features is not None:
            with np.errstate(over="ignore"):  # beyond float16's range: infinite, and reported below
                values[: len(block.decoded)] = block.features
        statuses = [Status.OK] * len(block.decoded)
        finite = np.isfinite(values[: len(block.decoded)]).all(axis=tuple(range(1, values.ndim)))
        for place in np.flatnonzero(~finite):
            statuses[place] = Status.NON_FINITE
            values[place] = np.nan
            step.failed.append(self._failure(block.decoded[place], Status.NON_FINITE, f"in {self._storage}"))
        for item in block.failed:
            assert item.error is not None  # that is what puts it here
            statuses.append(Status[item.error.reason])
            step.failed.append(self._failure(item, statuses[-1], item.error.message))
        order = np.argsort([item.row for item in items])
        items = [items[place] for place in order]
        self.writer.write(
            np.array([item.row for item in items], dtype=np.int64),
            {self._layer: values[order]},
            digests=np.frombuffer(b"".join(item.digest for item in items), dtype=np.uint8).reshape(-1, 32),
            statuses=np.array(statuses, dtype=np.uint8)[order],
            sizes=np.array([item.size for item in items], dtype=np.int64),
            mtimes=np.array([item.mtime for item in items], dtype=np.int64),
        )
        return step

    def _failure(self, item: Decoded, status: Status, detail: str) -> tuple[str, str, str]:
        name = ascii_name(os.fsdecode(bytes(self._listing.ids[item.row])))
        return name, status.name, detail

    def _copy(self, same: list[Decoded]) -> tuple[Step, NDArray[np.int64]]:
        """Copy rows from their owners; rows whose owner's checksum does not hold are returned, to be computed."""
        step = Step()
        again = []
        for number in {self._owners[item.digest][0] for item in same}:
            old = open_cache(self._partial) if number == THIS_RUN else self._olds[number]
            items = [item for item in same if self._owners[item.digest][0] == number]
            rows = np.array([item.row for item in items], dtype=np.int64)
            # The file as it was read, which may be younger than the listing
            self._listing.sizes[rows] = [item.size for item in items]
            self._listing.mtimes[rows] = [item.mtime for item in items]
            owners = np.array([self._owners[item.digest][1] for item in items], dtype=np.int64)
            bad = copy_rows(old, owners, self.writer, rows, self._listing)
            step.copied += len(rows) - len(bad)
            again.append(bad)
            for item in items:
                if item.row in bad:
                    self._owners.pop(item.digest, None)
        step.done = step.copied
        return step, np.sort(np.concatenate(again)) if again else np.zeros(0, dtype=np.int64)
