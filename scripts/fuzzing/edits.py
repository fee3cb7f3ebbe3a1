"""Edits of bytes: flips, numbers that often break things, cuts, repetitions, pieces of other files."""

from __future__ import annotations

import random
from collections.abc import Sequence

INTERESTING = (0, 1, 2, 127, 128, 255, 4096, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def interesting(rng: random.Random) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(INTERESTING) if rng.random() < 0.8 else rng.getrandbits(64)
    value %= 1 << 8 * width
    return value.to_bytes(width, "little" if rng.random() < 0.5 else "big")


def edited(data: bytes, place: int, rng: random.Random) -> bytes:
    """What to write at `place`: a bit, a byte, a number that often breaks things, or bytes from elsewhere in `data`."""
    kind = rng.random()
    if kind < 0.25:
        return bytes([data[place] ^ 1 << rng.randrange(8)])
    if kind < 0.45:
        return bytes([rng.randrange(256)])
    if kind < 0.55:
        return bytes([(data[place] + rng.choice((-1, 1))) % 256])
    if kind < 0.85:
        return interesting(rng)
    start = rng.randrange(len(data))
    return data[start : start + rng.randrange(1, 40)]


def scrambled(data: bytes, rng: random.Random, *, others: Sequence[bytes] = ()) -> bytes:
    """`data` with one to five edits, among them cuts, repetitions and pieces of other files; most near its ends."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        if not result:
            break
        near = rng.random()
        low, high = (0, 256) if near < 0.45 else (len(result) - 160, len(result)) if near < 0.6 else (0, len(result))
        place = rng.randrange(max(0, low), min(len(result), high))
        kind = rng.random()
        if kind < 0.8:
            new = edited(bytes(result[: place + 1]), place, rng)
            result[place : place + len(new)] = new
        elif kind < 0.85:
            del result[place:]
        elif kind < 0.9:
            del result[place : place + rng.randrange(1, 64)]
        elif kind < 0.95:
            start = rng.randrange(len(result))
            result[place:place] = result[start : start + rng.randrange(1, 200)]
        elif others:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            result[place:] = other[start:]
    return bytes(result)
