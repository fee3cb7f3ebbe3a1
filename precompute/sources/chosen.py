"""Some samples of a source, chosen by their rows: each keeps its id, stamps, label, split and further columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from precompute.sources.base import Raw, Source, Table


class ChosenSource(Source):
    """The rows `chosen` of `whole`, ascending: a slice, which copies nothing, or row numbers (n,) int64.

    Classes stay those of the whole source, also where no chosen sample has them. name: for messages.
    """

    def __init__(self, whole: Source, chosen: slice | NDArray[np.int64], name: str) -> None:
        self.whole, self.name = whole, name
        self.rows = np.arange(len(whole), dtype=np.int64)[chosen]
        if not (np.diff(self.rows) > 0).all():
            raise ValueError("Chosen rows must ascend, each once.")
        cut = {one.name: getattr(whole.table, one.name) for one in fields(Table)}
        for column in ("ids", "sizes", "mtimes", "labels", "splits"):
            cut[column] = cut[column][chosen]
        cut["columns"] = {column: values[chosen] for column, values in cut["columns"].items()}
        self.table = Table(**cut)
        self.reading, self.gaps, self.notes, self.ignored = whole.reading, whole.gaps, whole.notes, whole.ignored
        self.reads_at_once = whole.reads_at_once
        unseen = np.array(whole.unseen, dtype=np.int64)
        self.unseen = tuple(self._places(unseen[np.isin(unseen, self.rows)]).tolist())

    def _places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows of the whole source stand among the chosen."""
        return np.searchsorted(self.rows, rows).astype(np.int64)

    @property
    def origin(self) -> str:
        """See `Source`."""
        return self.whole.origin

    def order(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """See `Source`."""
        for part in self.whole.order(self.rows[rows]):
            yield self._places(part)

    def read(self, row: int) -> Raw:
        """See `Source`."""
        return self.whole.read(int(self.rows[row]))

    def alive(self) -> bool:
        """See `Source`."""
        return self.whole.alive()

    def patient(self, waits: bool) -> None:
        """See `Source`."""
        self.whole.patient(waits)

    def reads(self, path: str) -> bool:
        """See `Source`."""
        return self.whole.reads(path)

    def id_of(self, row: int) -> str:
        """See `Source`."""
        return self.whole.id_of(int(self.rows[row]))
