"""Whether all of a file is there, where libsndfile takes what is there for all that there was: WAV and OGG."""

from __future__ import annotations

import struct
import zlib

from precompute.errors import SampleError

UNKNOWN_SIZES = 0x7FFF0000
"""From here on the size in a WAV header means that its writer did not know it: such as one that wrote to a pipe."""
IN_DS64 = 0xFFFFFFFF  # the size stands in the chunk `ds64`, of an RF64 file

END_OF_STREAM, OGG_HEADER = 4, 27  # a flag of the last page of Ogg, and the bytes of a page's fixed part
MIRRORED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def check_whole(kind: str, raw: bytes) -> None:
    """Raise SampleError with the reason TRUNCATED where data of a WAV or OGG file is missing, or of OGG damaged."""
    if kind == "WAV":
        _check_wav(raw)
    elif kind == "OGG":
        _check_ogg(raw)


def _check_wav(raw: bytes) -> None:
    order, place, large = ">" if raw[:4] == b"RIFX" else "<", 12, 0
    while place + 8 <= len(raw):
        name, size = raw[place : place + 4], struct.unpack_from(f"{order}I", raw, place + 4)[0]
        if name == b"ds64" and place + 24 <= len(raw):
            large = struct.unpack_from(f"{order}Q", raw, place + 16)[0]
        if name == b"data":
            there, known = len(raw) - place - 8, size < UNKNOWN_SIZES
            if raw[:4] == b"RF64" and size == IN_DS64:
                size, known = large, True
            if known and there < size:
                raise SampleError(f"its header promises {size:,} bytes, and {there:,} are there", reason="TRUNCATED")
            return
        place += 8 + size + size % 2
    raise SampleError("WAV without samples: there is no `data`", reason="TRUNCATED")


def _check_ogg(raw: bytes) -> None:
    """Each page has a checksum, and the last one says that it is the last."""
    place, last = 0, False
    while place < len(raw):
        header = raw[place : place + OGG_HEADER]
        if last and not header.startswith(b"OggS"):
            return  # such as a tag that a program put behind the stream
        if len(header) < OGG_HEADER or not header.startswith(b"OggS"):
            break
        lengths = raw[place + OGG_HEADER : place + OGG_HEADER + header[26]]
        end = place + OGG_HEADER + header[26] + sum(lengths)
        page = raw[place:end]
        if end > len(raw) or _ogg_checksum(page) != int.from_bytes(header[22:26], "little"):
            break
        place, last = end, bool(header[5] & END_OF_STREAM)
    if place < len(raw) or not last:
        raise SampleError(f"OGG: a page is missing or damaged, at byte {place:,}", reason="TRUNCATED")


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 of the polynomial 04c11db7 from 0 on, over the page with zeros where its own checksum stands.

    It is zlib's, except for the order of bits and for what that begins and ends with.
    """
    plain = page[:22] + bytes(4) + page[26:]
    found = zlib.crc32(plain.translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2)
