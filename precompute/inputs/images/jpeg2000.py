"""What the header of a JPEG 2000 file makes its decoder allocate, known before it is asked.

OpenJPEG lays out every tile, code block and precinct that a header promises, whether data follows or not: 192 bytes
were seen to take 12 GB. All sizes are those of ISO/IEC 15444-1, annex A.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from precompute.errors import SampleError

SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
MAX_BYTES = 2**30
SOC_SIZ = b"\xff\x4f\xff\x51"
COD, COC, SOT, SOD = 0xFF52, 0xFF53, 0xFF90, 0xFF93
BLOCK_BYTES = 640  # for a code block in a precinct of its own; 400 to 560 were measured
PACKET_BYTES = 64  # a few in memory; the rest stands for the time that each takes, as often as there are tiles
TILE_BYTES, TILE_COMPONENT_BYTES = 6000, 1200


def check(data: bytes, size: tuple[int, int]) -> None:
    """Raise SampleError where decoding would take more than MAX_BYTES, or where the picture is not of `size`."""
    start = _codestream(data)
    siz = data[start + 4 : start + 42]
    if data[start : start + 4] != SOC_SIZ or len(siz) < 38:
        raise _damaged("no codestream")
    right, lower, left, upper, across, down, _, _, count = struct.unpack_from(">8IH", siz, 4)
    width, height = right - left, lower - upper
    if (width, height) != size or not (1 <= count <= 4 and across and down):
        raise _damaged("its headers contradict each other")
    tile = min(across, width), min(down, height)
    tiles = -(-right // across) * -(-lower // down)
    needed = width * height * (2 * count + 8) + tile[0] * tile[1] * 4 * count
    needed += tiles * (TILE_BYTES + TILE_COMPONENT_BYTES * count)
    coding = [(kind, body) for kind, body in _segments(data, start + 2) if kind in (COD, COC)]
    layers = max((int.from_bytes(body[2:4], "big") for kind, body in coding if kind == COD), default=1)
    blocks = packets = 0
    for kind, body in coding:
        own, style = (body[0] & 1, body[5:]) if kind == COD else (body[1] & 1, body[2:])
        found = _blocks_and_packets(tile, style, bool(own))
        blocks, packets = max(blocks, found[0]), max(packets, found[1])
    needed += BLOCK_BYTES * count * blocks + PACKET_BYTES * count * packets * layers * tiles
    if needed > MAX_BYTES:
        raise SampleError(
            f"{width} x {height} pixels of {count} components in {tiles:,} tiles would take about {needed:,} bytes, "
            f"more than the limit of {MAX_BYTES:,}",
            reason="TOO_LARGE",
        )


def _blocks_and_packets(tile: tuple[int, int], style: bytes, own_precincts: bool) -> tuple[int, int]:
    """About so many code blocks, and packets of one layer, has one component of a tile.

    style: number of levels, sizes of code blocks, and of precincts level by level (A.6.1).
    """
    if len(style) < 5:
        raise _damaged("a cut header")
    levels = style[0] + 1
    precincts = (style[5 : 5 + levels] if own_precincts else b"").ljust(levels, b"\xff")
    blocks = packets = 0
    for level, precinct in enumerate(precincts):
        bands = 3 if level else 1  # each of half the sides, but for the first
        in_level, pieces = 1, 1
        for side, exponent, largest in ((tile[0], style[1], precinct & 15), (tile[1], style[2], precinct >> 4)):
            here = side >> (levels - 1 - level)
            block = min((exponent & 15) + 2, max(largest - 1, 0)) + 1 if level else min((exponent & 15) + 2, largest)
            in_level *= (here >> block) + 1
            pieces *= (here >> largest) + 1
        blocks += bands * in_level
        packets += pieces
    return blocks, packets


def _codestream(data: bytes) -> int:
    """Where the codestream begins: at once, or in the first `jp2c` box."""
    if not data.startswith(SIGNATURE):
        return 0
    place = 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        header = 8
        if length == 1 and place + 16 <= len(data):
            length, header = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        if kind == b"jp2c":
            return place + header
        if length < header:
            break
        place += length
    raise _damaged("no codestream")


def _segments(data: bytes, place: int) -> Iterator[tuple[int, bytes]]:
    """(marker, body) of each segment of the main header and of the headers of all tile parts."""
    part = 0
    while place + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, place)
        if marker == SOT and place + 12 <= len(data):
            part = place + int.from_bytes(data[place + 6 : place + 10], "big")
        if marker == SOD:
            if part <= place:  # the last part reaches to the end
                return
            place = part
            continue
        if marker < 0xFF00 or length < 2:
            return
        yield marker, data[place + 4 : place + 2 + length]
        place += 2 + length


def _damaged(why: str) -> SampleError:
    return SampleError(f"damaged JPEG 2000: {why}", reason="TRUNCATED")
