"""Makes what several kinds share: code in a pickle, holes, data that grows."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any


class Payload:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def write_sparse(path: Path, head: bytes, size: int) -> None:
    path.write_bytes(head)
    os.truncate(path, size)


def bomb(size: int, *, wrapped: bool = True) -> bytes:
    """zlib data, or bare deflate data, that grows to `size` zeros. One MiB is compressed; its bytes are repeated."""
    packer, piece = zlib.compressobj(9, wbits=-15), 2**20
    block = packer.compress(bytes(piece)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-15)
    raw = block * (size // piece) + rest.compress(bytes(size % piece)) + rest.flush()
    return b"\x78\xda" + raw + struct.pack(">HH", size % 65521, 1) if wrapped else raw
