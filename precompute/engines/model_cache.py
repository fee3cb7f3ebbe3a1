"""Compiled models, kept for later processes in the user's cache folder, the oldest leaving when there are many."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

KEPT = 16  # models; each takes about as much as its weights in fp32
SUFFIX = ".blob"
DIGEST_BYTES = 16
MAX_BYTES = 16 * 2**30  # torchvision's largest backbone takes 2.6 GB in fp32


def folder() -> Path:
    """`$XDG_CACHE_HOME/precompute/openvino`, by default below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "precompute", "openvino")


def read(name: str) -> NDArray[np.uint8] | None:
    """What `write` kept under `name`, (bytes,) uint8; None where there is nothing, or it is not whole."""
    path = folder() / f"{name}{SUFFIX}"
    try:
        # Whatever has taken its place: a FIFO is not waited for, a link not followed
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
                return None
            content = np.fromfile(file, np.uint8, status.st_size)
            os.utime(descriptor)  # so that what is used stays
    except OSError:
        return None
    blob = content[DIGEST_BYTES:]
    return blob if _digest(blob.data) == content[:DIGEST_BYTES].tobytes() else None


def discard(name: str) -> None:
    """Remove what is kept under `name`, as far as that is possible."""
    with contextlib.suppress(OSError):
        (folder() / f"{name}{SUFFIX}").unlink()


def write(name: str, blob: bytes) -> None:
    """Keep `blob` under `name`, in one step; leave only the KEPT last used ones. Raises OSError."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=place, suffix=".new")
    try:
        with open(descriptor, "wb") as file:
            file.write(_digest(blob))
            file.write(blob)
        os.replace(temporary, place / f"{name}{SUFFIX}")
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _drop_oldest(place)


def _digest(blob: bytes | memoryview) -> bytes:
    """Against accidents: the folder is the user's own. SHA-256 would take a fifth of a second for ViT-B/16."""
    return xxhash.xxh3_128_digest(blob)


def _drop_oldest(place: Path) -> None:
    ages = []
    for path in place.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another process was quicker
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages)[:-KEPT]:
        with contextlib.suppress(OSError):
            path.unlink()
