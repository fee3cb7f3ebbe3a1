"""Mutated caches."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.checksums import checked_blocks, lookup3
from hostile.good import make_cache, make_int8_cache

from .edits import edited
from .target import Target, WrongError, reason


class CacheTarget(Target):
    """Edits a small cache in place, and mends libhdf5's own checksums so that edits of its structure get past them."""

    make: Callable[[Path], None] = staticmethod(make_cache)

    def __init__(self, folder: Path) -> None:
        from precompute.cache import open_cache, verify

        super().__init__(folder)
        self.path.unlink(missing_ok=True)  # of a worker that crashed
        self.make(self.path)
        self.base = self.path.read_bytes()
        self.blocks = checked_blocks(self.base)
        cache = open_cache(self.path)
        if not verify(cache).whole:
            raise WrongError("the file to mutate is not whole")
        self.columns = [column for column in cache.layout.columns.values() if column.name != "provenance"]
        self.expected, self.spec, self.further = self.described(cache), cache.spec, self.further_columns(cache)
        self.descriptor = os.open(self.path, os.O_RDWR)
        self.touched: list[tuple[int, int]] = []
        self.cut = False

    @staticmethod
    def further_columns(cache: Any) -> dict[str, bytes]:
        return {name: cache.column(f"columns/{name}").tobytes() for name in cache.columns}

    @staticmethod
    def described(cache: Any) -> list[tuple[Any, ...]]:
        """All that is known of each row."""
        classes = (*cache.classes, None)
        columns = [cache.column(f"samples/{name}") for name in ("digest", "size", "mtime_ns", "status")]
        features = [(layer, cache.features(layer)) for layer in cache.layers]
        named = zip(cache.ids, cache.labels.tolist(), cache.split.tolist(), strict=True)
        return [
            (
                identity,
                classes[label],
                split,
                *(column[row].tobytes() for column in columns),
                *((layer, array.shape[1:], array.dtype.str, array[row].tobytes()) for layer, array in features),
            )
            for row, (identity, label, split) in enumerate(named)
        ]

    def write(self, place: int, data: bytes) -> None:
        data = data[: len(self.base) - place]
        os.pwrite(self.descriptor, data, place)
        self.touched.append((place, len(data)))

    def mutate(self, rng: random.Random) -> None:
        mended = set()
        for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
            kind = rng.random()
            if kind < 0.6:
                block = rng.choice(self.blocks)
                start, length = block
                place = start + rng.randrange(length)
                data = self.base[start : start + length]
                self.write(place, edited(data, place - start, rng)[: start + length - place])
                if kind < 0.55:
                    mended.add(block)
            elif kind < 0.93:
                self.change_column(rng)
            elif kind < 0.97:
                place = rng.randrange(len(self.base))
                self.write(place, edited(self.base, place, rng))
            else:
                os.ftruncate(self.descriptor, rng.randrange(len(self.base) + 1))
                self.cut = True
                return
        for start, length in sorted(mended):
            self.write(start + length, struct.pack("<I", lookup3(os.pread(self.descriptor, length, start))))

    def change_column(self, rng: random.Random) -> None:
        column = rng.choice(self.columns)
        if not column.nbytes:
            return
        data = self.base[column.offset : column.offset + column.nbytes]
        place = rng.randrange(len(data))
        if rng.random() < 0.6:
            self.write(column.offset + place, edited(data, place, rng)[: len(data) - place])
            return
        first, second = (rng.randrange(column.shape[0]) * column.row_bytes for _ in range(2))
        self.write(column.offset + first, data[second : second + column.row_bytes])
        if rng.random() < 0.5:
            self.write(column.offset + second, data[first : first + column.row_bytes])

    def check(self) -> str:
        from precompute.cache import open_cache, verify
        from precompute.errors import CacheFormatError

        try:
            cache = open_cache(self.path)
            found = verify(cache)
        except CacheFormatError as error:
            return reason(error.message, self.path)
        _ = cache.provenance, cache.ok, repr(cache)
        rows = self.described(cache)
        if len(rows) != len(self.expected) or cache.spec != self.spec:
            raise WrongError(f"{len(rows)} rows instead of {len(self.expected)}, made with {cache.spec}")
        if (
            wrong := self.further_columns(cache).items() - self.further.items()
        ):  # one may be lost, as unknown members are
            raise WrongError(f"columns are called good: {wrong}")
        for row in found.good.tolist():
            if rows[row] != self.expected[row]:
                raise WrongError(f"row {row} is called good: {rows[row]} instead of {self.expected[row]}")
        return "opened" if found.whole else "opened, some rows damaged"

    def restore(self) -> None:
        if self.cut:
            size = os.fstat(self.descriptor).st_size
            os.pwrite(self.descriptor, self.base[size:], size)
            self.cut = False
        for place, length in self.touched:
            os.pwrite(self.descriptor, self.base[place : place + length], place)
        self.touched.clear()


class Int8Target(CacheTarget):
    """The same of a file of 8 bits."""

    make = staticmethod(make_int8_cache)
