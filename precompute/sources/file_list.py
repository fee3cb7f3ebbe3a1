"""A list of files, one path a line: `files.txt`, `@files` of any name, and `-` for standard input.

Ids are the paths as they are written; there are no labels. Empty lines are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from typing import BinaryIO

from precompute.sources.base import FileKind, Reading, Source, ascii_name
from precompute.sources.entries import BLOCK_ROWS, Entries, Rows, root_of
from precompute.sources.text import open_regular, text_lines

STREAM = "-"
MARK = "@"


def recognises(name: str) -> bool:
    """`-`, what begins with @, and what ends in .txt; a folder of such a name is a folder."""
    called_so = name.startswith(MARK) or name.lower().endswith(".txt")
    return name == STREAM or (called_so and not os.path.isdir(name))


def open_list(
    name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: Callable[[], int] | None
) -> Source:
    """The files that a list names. Raises SourceError and Stopped."""
    if name == STREAM:
        entries = Entries("standard input", "line", reading.root or ".")
        with open(0, "rb", closefd=False) as stream:
            _read(stream, entries)
        return entries.source(None, kind, limit=limit, stop=stop)
    listing = name.removeprefix(MARK)
    entries = Entries(ascii_name(listing), "line", root_of(listing, reading.root))
    with open_regular(listing, entries.shown) as file:
        _read(file, entries)
    return entries.source(listing, kind, limit=limit, stop=stop)


def _read(file: BinaryIO, entries: Entries) -> None:
    lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(text_lines(file, entries.shown), 1))
    named = ((number, path) for number, path in lines if path)
    while block := list(islice(named, BLOCK_ROWS)):
        numbers, paths = zip(*block, strict=True)
        entries.add(Rows(numbers, paths))
