"""Which samples a report refers to: each has a place in the report's own list, in the order in which they came up.

A cache can hold millions of rows, of which a report names some thousands; so it carries ids of these alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from precompute.cache import Cache

Rows = NDArray[np.int64]


class Places:
    """The places of a cache's rows, given out as they are requested."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._place = np.full(len(cache), -1, np.int32)
        self._rows: list[Rows] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, rows: Rows) -> NDArray[np.int32]:
        """(n,) the place of each row; a row that has none yet gets the next one."""
        rows = np.asarray(rows, np.int64)
        new = rows[self._place[rows] < 0]
        if len(new):
            first = np.unique(new, return_index=True)[1]
            fresh = new[np.sort(first)]
            self._place[fresh] = np.arange(self._count, self._count + len(fresh), dtype=np.int32)
            self._rows.append(fresh)
            self._count += len(fresh)
        found: NDArray[np.int32] = self._place[rows]
        return found

    @property
    def rows(self) -> Rows:
        """(n,) the row behind each place."""
        return np.concatenate(self._rows) if self._rows else np.zeros(0, np.int64)

    def ids(self) -> list[str]:
        """The id of each, readable in any encoding; see `readable`."""
        return [readable(value) for value in self.cache.column("samples/id")[self.rows].tolist()]


def readable(name: bytes | str) -> str:
    """A name as Unicode that every encoding of Unicode can hold: bytes that are not UTF-8 are written `\\udcXX`."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
