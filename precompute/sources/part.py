"""Every N-th part of a source, for jobs that share the work; joined again by `extract --reuse`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from precompute.errors import UsageError
from precompute.sources.base import Raw, Source, Table


class PartOfSource(Source):
    """Part `number` of `of` of the samples of `whole`, in the order of ids: neighbours stay together.

    Attributes: whole: what engines prove themselves on, so that all parts choose alike · part: I/N.
    """

    def __init__(self, whole: Source, number: int, of: int) -> None:
        bounds = [len(whole) * edge // of for edge in (number - 1, number)]
        if bounds[0] == bounds[1]:
            raise UsageError(
                f"{whole.name} has {len(whole):,} samples, and part {number} of {of} has none of them.",
                hint="Ask for fewer parts.",
            )
        self.whole, self.part, self._first = whole, f"{number}/{of}", bounds[0]
        rows = slice(*bounds)
        cut = {one.name: getattr(whole.table, one.name) for one in fields(Table)}
        for name in ("ids", "sizes", "mtimes", "labels", "splits"):
            cut[name] = cut[name][rows]
        cut["columns"] = {name: values[rows] for name, values in cut["columns"].items()}
        self.table = Table(**cut)
        self.name = f"{whole.name} (part {number} of {of})"
        self.reading, self.gaps, self.notes, self.ignored = whole.reading, whole.gaps, whole.notes, whole.ignored
        self.reads_at_once = whole.reads_at_once
        self.unseen = tuple(row - self._first for row in whole.unseen if bounds[0] <= row < bounds[1])

    @property
    def origin(self) -> str:
        """See `Source`."""
        return self.whole.origin

    def order(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """See `Source`."""
        for part in self.whole.order(rows + self._first):
            yield part - self._first

    def read(self, row: int) -> Raw:
        """See `Source`."""
        return self.whole.read(self._first + row)

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
        return self.whole.id_of(self._first + row)


def part_of(source: Source, part: str) -> PartOfSource:
    """`part` is I/N, such as 1/4 to 4/4. Raises UsageError for another, and for a part without samples."""
    first, slash, last = part.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UsageError(
            f"A part of a source is I/N with I from 1 to N. Got {part!r} instead.", hint="Such as 1/4, to 4/4."
        )
    return PartOfSource(source, int(first), int(last))
