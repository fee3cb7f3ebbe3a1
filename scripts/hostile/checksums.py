"""Makes HDF5's own checksums, so that a change of structure gets past them."""

from __future__ import annotations

import re
import struct


def checked_blocks(data: bytes) -> list[tuple[int, int]]:
    """(start, length) of the superblock and of every object header of version 2; four bytes of checksum follow each."""
    blocks = [(0, 44)]
    for match in re.finditer(rb"OHDR\x02", data):
        place = match.start() + 6
        flags = data[match.start() + 5]
        place += 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        width = 1 << (flags & 3)
        end = place + width + int.from_bytes(data[place : place + width], "little")
        blocks.append((match.start(), end - match.start()))
    return [
        (start, length)
        for start, length in blocks
        if data[start + length : start + length + 4] == struct.pack("<I", lookup3(data[start : start + length]))
    ]


def lookup3(data: bytes) -> int:
    """Bob Jenkins' lookup3 `hashlittle` (https://burtleburtle.net/bob/c/lookup3.c), which HDF5 uses for metadata."""
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask
    if not data:
        return c
    words = struct.unpack(f"<{(len(data) + 11) // 12 * 3}I", data + bytes(-len(data) % 12))
    for place in range(0, len(words) - 3, 3):
        a, b, c = (a + words[place]) & mask, (b + words[place + 1]) & mask, (c + words[place + 2]) & mask
        a = (a - c & mask) ^ (c << 4 & mask | c >> 28)
        c = c + b & mask
        b = (b - a & mask) ^ (a << 6 & mask | a >> 26)
        a = a + c & mask
        c = (c - b & mask) ^ (b << 8 & mask | b >> 24)
        b = b + a & mask
        a = (a - c & mask) ^ (c << 16 & mask | c >> 16)
        c = c + b & mask
        b = (b - a & mask) ^ (a << 19 & mask | a >> 13)
        a = a + c & mask
        c = (c - b & mask) ^ (b << 4 & mask | b >> 28)
        b = b + a & mask
    a, b, c = (a + words[-3]) & mask, (b + words[-2]) & mask, (c + words[-1]) & mask
    c = (c ^ b) - (b << 14 & mask | b >> 18) & mask
    a = (a ^ c) - (c << 11 & mask | c >> 21) & mask
    b = (b ^ a) - (a << 25 & mask | a >> 7) & mask
    c = (c ^ b) - (b << 16 & mask | b >> 16) & mask
    a = (a ^ c) - (c << 4 & mask | c >> 28) & mask
    b = (b ^ a) - (a << 14 & mask | a >> 18) & mask
    return int((c ^ b) - (b << 24 & mask | b >> 8) & mask)
