"""Text files that people and programs made: their lines, decoded, with what is wrong and in which line."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from precompute.errors import SourceError
from precompute.sources.remote.address import is_address
from precompute.sources.remote.store import download

MAX_LINE_BYTES = 16 * 2**20  # so much of a line is read: a file without line ends would not fit into memory


def open_regular(path: str, shown: str) -> BinaryIO:
    """Open the ordinary file at `path`; a FIFO or a device is not waited for. Of an object in a store, a copy.

    Raises SourceError.
    """
    if is_address(path):
        return download(path, shown)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise SourceError(f"{shown} does not exist.", hint="Check the path for a typing error.") from error
    except OSError as error:
        hint = f"Check its permissions: ls -l {shown}"
        raise SourceError(f"{shown} cannot be read: {error.strerror}.", hint=hint) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{shown} is not an ordinary file.", hint="Write it to a file first, or pipe a list to `-`.")
    return open(descriptor, "rb")


class Lines(Protocol):
    """What is read of a file."""

    def readline(self, most: int, /) -> bytes: ...


def text_lines(file: Lines, shown: str, *, strict: bool = True) -> Iterator[str]:
    """The lines of UTF-8 text with their ends, without a byte order mark. Raises SourceError, with the line.

    strict: no NUL, and nothing but UTF-8; else that is left to anyone who reads a field, as surrogate escapes.
    """
    number = 0
    while line := _next_line(file, shown):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > MAX_LINE_BYTES or (strict and b"\0" in line):
            raise _no_text(line, f"{shown}, line {number:,}")
        try:
            text = line.decode(errors="strict" if strict else "surrogateescape")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{shown}, line {number:,} is not UTF-8: byte 0x{line[error.start]:02x} at place {error.start + 1}.",
                hint="Save the file as UTF-8, such as by: iconv -f LATIN1 -t UTF-8 OLD > NEW",
            ) from error
        yield text


def _no_text(line: bytes, where: str) -> SourceError:
    if len(line) > MAX_LINE_BYTES:
        return SourceError(f"{where} is longer than {MAX_LINE_BYTES:,} bytes.", hint="Is it a text file at all?")
    return SourceError(f"{where} holds a NUL byte.", hint="Save the file as plain text in UTF-8.")


def _next_line(file: Lines, shown: str) -> bytes:
    try:
        return file.readline(MAX_LINE_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{shown} cannot be read: {error.strerror}.", hint="Check its disk.") from error
