"""Bytes -> a text, or the reason why they are none."""

from __future__ import annotations

import codecs

from precompute.errors import SampleError

MAX_TEXT_BYTES = 2**20  # a long novel; what is longer is a file of something else, and takes seconds


def text_of(raw: bytes) -> str:
    """UTF-8 as text, without a byte order mark.

    Raises SampleError: TOO_LARGE beyond MAX_TEXT_BYTES, UNDECODABLE for what is not UTF-8, holds a NUL, or is empty or
    nothing but blanks.
    """
    if len(raw) > MAX_TEXT_BYTES:
        raise SampleError(f"{len(raw):,} bytes, more than {MAX_TEXT_BYTES:,}", reason="TOO_LARGE")
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        place = f"byte 0x{raw[error.start]:02x} at place {error.start + 1:,}"
        raise SampleError(f"not UTF-8: {place}", reason="UNDECODABLE") from error
    if "\0" in text:
        raise SampleError("it holds a NUL", reason="UNDECODABLE")
    if not text.strip():
        raise SampleError("an empty text", reason="UNDECODABLE")
    return text
