"""Objects that a table or a list names one by one."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from precompute.errors import SourceError
from precompute.sources.base import Table, ascii_name
from precompute.sources.files import EARLIEST
from precompute.sources.remote.address import Address, absolute
from precompute.sources.remote.folder import RemoteSource
from precompute.sources.remote.store import Store, open_store, source_error


class NamedObjects(RemoteSource):
    """listing: path or address of the table or list, None where it is a stream · keys: (N,) see `RemoteSource`."""

    def __init__(
        self, listing: str | None, store: Store, root: Address, table: Table, keys: NDArray[np.bytes_] | None
    ) -> None:
        super().__init__(store, root, table, keys)
        self._listing = listing
        self.name = "standard input" if listing is None else ascii_name(listing)

    @property
    def origin(self) -> str:
        """See `Source`."""
        return "-" if self._listing is None else absolute(self._listing)

    def reads(self, path: str) -> bool:
        """See `Source`."""
        return self._listing is not None and os.path.realpath(path) == os.path.realpath(self._listing)


def objects_named(
    root: Address, names: NDArray[np.bytes_], check: Callable[[], None]
) -> tuple[Store, NDArray[np.int64], NDArray[np.int64], tuple[int, ...]]:
    """The store, size and stamp of the object behind each name below `root`, no object's for one that is not there;
    rows whose prefix the store refuses to list.

    What the names have in common is listed, a thousand keys in a request, which costs less than to request each.
    check: called for each page. Raises SourceError.
    """
    store = open_store(root)
    order = np.argsort(names, kind="stable")
    ordered = names[order]
    first, last = os.fsdecode(bytes(ordered[0])), os.fsdecode(bytes(ordered[-1]))
    prefix = root.prefix + posixpath.commonpath([posixpath.dirname(first), posixpath.dirname(last)])
    prefix += "/" if prefix and not prefix.endswith("/") else ""
    after = (root.prefix + first)[:-1]  # a shorter key comes before it
    sizes, stamps = np.zeros(len(names), dtype=np.int64), np.full(len(names), EARLIEST, dtype=np.int64)
    unseen = np.zeros(len(names), dtype=bool)
    try:
        for page in store.pages(prefix, after if after.startswith(prefix) else ""):
            check()
            for refused in page.refused:
                below = os.fsencode(refused[len(root.prefix) :])
                unseen[order] |= np.char.startswith(ordered, below)
            keys = [os.fsencode(one.key[len(root.prefix) :]) for one in page.objects]
            if not keys:
                continue
            found = np.array(keys, dtype=np.bytes_)
            starts, ends = np.searchsorted(ordered, found), np.searchsorted(ordered, found, side="right")
            for number in np.flatnonzero(ends > starts).tolist():
                rows = order[starts[number] : ends[number]]
                sizes[rows], stamps[rows] = page.objects[number].size, page.objects[number].stamp
    except OSError as error:
        raise source_error(root.shown, error) from None
    if np.all(stamps == EARLIEST) and not unseen.any():
        raise SourceError(
            f"None of the {len(names):,} objects that are named is below {root.shown}; the first would be "
            f"{ascii_name(first)!r}.",
            hint="Paths are relative to the table's prefix, or to --root s3://BUCKET/PREFIX.",
        )
    return store, sizes, stamps, tuple(np.flatnonzero(unseen).tolist())
