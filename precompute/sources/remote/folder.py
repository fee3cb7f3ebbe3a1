"""A prefix of an object store as a source: same ids, labels and splits as the same files in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precompute.errors import SourceError
from precompute.sources.base import FileKind, Raw, Reading, Source, Table
from precompute.sources.folder import asked_to_stop, tabulated
from precompute.sources.labels import tops_of
from precompute.sources.remote.address import Address, address_of, is_address
from precompute.sources.remote.store import Object, Page, Store, open_store, read_sample, source_error
from precompute.sources.tree import Found

READS_AT_ONCE = 32  # a request waits some 30 ms for its answer, and takes a processor 1 ms
MAX_KEY_BYTES = 1024  # what S3 allows
DOT = "."
ARRAYS = (".npz", ".npy")


class RemoteSource(Source):
    """Objects of a bucket.

    address: of the prefix that the source is · table: ids are keys below it; `sizes` and `mtimes` are size and stamp
    (see `Store.stamp`) of each object · keys: (N,) below the prefix; None where the ids are.
    """

    reads_at_once = READS_AT_ONCE

    def __init__(self, store: Store, address: Address, table: Table, keys: NDArray[np.bytes_] | None = None) -> None:
        self.address, self.table = address, table
        self.name = address.shown
        self._store = store
        self._keys = table.ids if keys is None else keys

    @property
    def origin(self) -> str:
        """See `Source`."""
        return self.address.url

    def read(self, row: int) -> Raw:
        """See `Source`."""
        return read_sample(self._store, self.address.prefix + os.fsdecode(bytes(self._keys[row])))

    def alive(self) -> bool:
        """See `Source`."""
        return self._store.answers(self.address.prefix)

    def patient(self, waits: bool) -> None:
        """See `Source`."""
        self._store.patient(waits)


def recognises(name: str) -> bool:
    """What begins like s3://."""
    return is_address(name)


def open_prefix(
    name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: Callable[[], int] | None
) -> RemoteSource:
    """List the samples below a prefix; the first `limit` of them by id.

    Keys are what paths are in a folder: hidden ones, and those that no file could have, are ignored and named. An
    object without an extension of the kind is looked into, as in a folder, by its own request.
    Raises SourceError where nothing is found or the store refuses, or does not answer for a minute; Stopped.
    """
    del reading  # nothing is left open
    address = address_of(name)
    store = open_store(address)
    found = Found(kind, pseudo={})
    check = asked_to_stop(address.shown, found, stop)
    listing = _Listing(store, address.prefix, found)
    try:
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            for page in store.pages(address.prefix):
                check()
                listing.add(page, pool)
    except OSError as error:
        raise source_error(address.shown, error) from None
    if not found.files:
        about = "; ".join(found.ignored.lines())
        hint = f"Name a prefix of {kind.formats} objects, of any depth; one object alone is not a source."
        if address.key.lower().endswith(ARRAYS):
            hint = "Arrays are read from a disk alone: copy it to one, and name that."
        about = about or "nothing is below it"
        raise SourceError(f"{address.shown} holds no {kind.plural} ({about}).", hint=hint)
    table, notes = tabulated(found, limit)
    source = RemoteSource(store, address, table)
    source.gaps, source.notes, source.ignored = tuple(found.unread), notes, tuple(found.ignored.lines())
    return source


@dataclass
class _Listing:
    """Puts objects where they belong. hidden: the prefix that was named last, so that each is named once."""

    store: Store
    prefix: str
    found: Found
    hidden: str = ""

    def add(self, page: Page, pool: ThreadPoolExecutor) -> None:
        """Raises OSError where the store does not answer any more."""
        found, unknown = self.found, list[tuple[str, Object]]()
        found.unread.extend(os.fsencode(prefix[len(self.prefix) :]) for prefix in page.refused)
        for one in page.objects:
            name = one.key[len(self.prefix) :]
            if self._is_path(name, one.size):
                if os.path.splitext(os.fsencode(name))[1].lower() in found.kind.extensions:
                    self._take(name, one)
                else:
                    unknown.append((name, one))
        for (name, one), answer in zip(unknown, pool.map(self._looked_into, unknown), strict=True):
            if answer is True:
                self._take(name, one)
            elif answer is False:
                found.ignored.add(f"not {found.kind.plural}", os.fsencode(name))
            else:
                found.ignored.add(f"not readable ({answer})", os.fsencode(name))
                found.unread.append(os.fsencode(name))  # refused today, so it does not count as deleted

    def _is_path(self, name: str, size: int) -> bool:
        """Whether a file could have this name; if not, it is noted."""
        if not name or (name.endswith("/") and not size):
            return False  # a mark that stands for a folder
        parts = name.split("/")
        if {"", ".", ".."} & set(parts) or "\0" in name:
            self.found.ignored.add("keys that are no paths", os.fsencode(name))
            return False
        if len(os.fsencode(name)) > MAX_KEY_BYTES:
            self.found.ignored.add(f"keys of more than {MAX_KEY_BYTES:,} bytes", os.fsencode(name[:MAX_KEY_BYTES]))
            return False
        depth = next((number for number, part in enumerate(parts, 1) if part.startswith(DOT)), 0)
        if depth and (hidden := "/".join(parts[:depth])) != self.hidden:
            self.hidden = hidden
            self.found.ignored.add("hidden", os.fsencode(hidden))
        return not depth

    def _take(self, name: str, one: Object) -> None:
        files, encoded = self.found.files, os.fsencode(name)
        tops = tops_of(encoded[: encoded.rfind(b"/") + 1])
        place = self.found.tops.setdefault(tops, len(self.found.tops))
        files.names.append(encoded)
        files.sizes.append(one.size)
        files.mtimes.append(one.stamp)
        files.settle(place)

    def _looked_into(self, unknown: tuple[str, Object]) -> bool | str:
        """Whether it begins like a sample; why that cannot be found out."""
        kind = self.found.kind
        if not kind.head_bytes:
            return False
        try:
            return kind.recognises(self.store.read(unknown[1].key, 0, kind.head_bytes)[0])
        except (FileNotFoundError, PermissionError) as error:
            return str(error.strerror)
