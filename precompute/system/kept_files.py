"""Files that only save time, kept in the user's cache folder: digested, bounded in size, and never waited for."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

DIGEST_BYTES = 16


@dataclass(frozen=True)
class KeptFiles:
    """A folder of such files.

    kind: name of the folder · suffix: of its files · largest: bytes of one · most: how many stay · total: bytes of all
    that stay; those used longest ago leave first.
    """

    kind: str
    suffix: str
    largest: int
    most: int
    total: int

    def folder(self) -> Path:
        """`$XDG_CACHE_HOME/precompute/KIND`, by default below ~/.cache."""
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        return Path(base, "precompute", self.kind)

    def path(self, name: str) -> Path:
        """Where `write` keeps what has this name."""
        return self.folder() / f"{name}{self.suffix}"

    def read(self, name: str) -> NDArray[np.uint8] | None:
        """What `write` kept under `name`, (bytes,) uint8; None where there is nothing, or it is not whole."""
        try:
            # Whatever has taken its place: a FIFO is not waited for, a link not followed
            descriptor = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(descriptor, "rb", buffering=0) as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size > self.largest:
                    return None
                stored = np.fromfile(file, np.uint8, status.st_size)
                os.utime(descriptor)  # so that what is used stays
        except OSError:
            return None
        content = stored[DIGEST_BYTES:]
        return content if _digest(content.data) == stored[:DIGEST_BYTES].tobytes() else None

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Keep `content` under `name`, in one step. Raises OSError."""
        place = self.folder()
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=place, suffix=".new")
        try:
            with open(descriptor, "wb") as file:
                file.write(_digest(content))
                file.write(content)
            os.replace(temporary, self.path(name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def discard(self, name: str) -> None:
        """Remove what is kept under `name`, as far as that is possible."""
        with contextlib.suppress(OSError):
            self.path(name).unlink()

    def drop_oldest(self) -> None:
        """Remove the files that were used longest ago, until the others are no more than they may be."""
        ages = []
        for path in self.folder().glob(f"*{self.suffix}"):
            with contextlib.suppress(OSError):  # another process was quicker
                status = path.stat()
                ages.append((status.st_mtime, status.st_size, path))
        total = 0
        for place, (_, size, path) in enumerate(sorted(ages, reverse=True)):
            total += size
            if place >= self.most or total > self.total:
                with contextlib.suppress(OSError):
                    path.unlink()


def _digest(content: bytes | memoryview) -> bytes:
    """Against accidents: the folder is the user's own. SHA-256 would take a fifth of a second for ViT-B/16."""
    return xxhash.xxh3_128_digest(content)
