"""A list of files, one path a line: `files.txt`, `@files` of any name, and `-` for standard input.

Ids are the paths as they are written; there are no labels. Empty lines are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import islice
from typing import BinaryIO

from precompute.errors import SourceError
from precompute.sources.base import FileKind, Reading, Source, ascii_name
from precompute.sources.entries import BLOCK_ROWS, Entries, Rows, root_of
from precompute.sources.remote.address import address_of, is_address
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


def open_paths(
    paths: Sequence[str | os.PathLike[str]],
    kind: FileKind,
    *,
    reading: Reading,
    limit: int | None,
    stop: Callable[[], int] | None,
) -> Source:
    """The files that a program lists; relative paths begin in the working folder, or in the root.

    A program may name files anywhere, where a text may not lead out of its root: without a root that is the deepest
    folder that holds all of them, or their bucket. Raises SourceError and Stopped.
    """
    names = [os.fspath(path) for path in paths]
    whole, root = names, reading.root
    addresses = sum(map(is_address, names))
    if root is None and 0 < addresses < len(names):
        raise SourceError(
            f"The list of paths names {addresses:,} addresses in a store and {len(names) - addresses:,} files.",
            hint="Give each kind its own list.",
        )
    if root is None and addresses:
        root = address_of(names[0]).root
    elif root is None:
        whole = [os.path.abspath(name) for name in names]
        root = os.path.commonpath([os.path.dirname(path) for path in whole])
    entries = Entries("the list of paths", "path", root)
    for first in range(0, len(names), BLOCK_ROWS):
        ids = names[first : first + BLOCK_ROWS]
        entries.add(Rows(range(first + 1, first + len(ids) + 1), whole[first : first + BLOCK_ROWS], ids=ids))
    made = entries.source(None, kind, limit=limit, stop=stop)
    made.name = f"a list of {len(names):,} paths"
    return made


def _read(file: BinaryIO, entries: Entries) -> None:
    lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(text_lines(file, entries.shown), 1))
    named = ((number, path) for number, path in lines if path)
    while block := list(islice(named, BLOCK_ROWS)):
        numbers, paths = zip(*block, strict=True)
        entries.add(Rows(numbers, paths))
