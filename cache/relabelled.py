"""A cache whose labels or splits come from elsewhere: a further column, or a table that was joined by id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from precompute.cache.reader import Cache


class RelabelledCache(Cache):
    """`cache`, with other values of `samples/label` and `classes`, or of `samples/split`. The file stays as it is."""

    def __init__(self, cache: Cache, replaced: Mapping[str, NDArray[Any]]) -> None:
        cache.check_table()  # of the file, while it is asked for
        self.__dict__.update(vars(cache))
        self._checked = {**self._checked, "labels": True}
        self._cache, self._replaced = cache, dict(replaced)

    def __reduce__(self) -> tuple[Any, ...]:
        return RelabelledCache, (self._cache, self._replaced)

    def column(self, name: str) -> NDArray[Any]:
        """As `Cache.column`, with what was replaced."""
        return self._replaced[name] if name in self._replaced else super().column(name)
