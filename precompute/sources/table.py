"""A table of files, `.csv`, `.tsv` or `.parquet`: a column of paths, and where there are any, of ids, labels, splits.

All of them are strings, also where they look like numbers: "007" stays "007". A Parquet file may hold the images
themselves instead of paths: `embedded` reads it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from operator import itemgetter
from typing import Any, BinaryIO

from precompute.errors import SourceError
from precompute.sources.base import PARTS, FileKind, Reading, Source, ascii_name
from precompute.sources.embedded_columns import has_images
from precompute.sources.entries import BLOCK_ROWS, Entries, Rows, root_of
from precompute.sources.header import choose
from precompute.sources.hf_folder import open_file
from precompute.sources.parquet import needed, parquet_rows, schema_of
from precompute.sources.remote.address import is_address
from precompute.sources.text import open_regular, text_lines
from precompute.sources.texts import TEXT, CsvTexts, ParquetTexts, TextsFile, holds_texts, open_texts

DIALECTS = {".csv": "excel", ".tsv": "excel-tab"}
OTHER_SEPARATORS = {".csv": {";", "\t", "|"}, ".tsv": {";", ",", "|"}}
PARQUET = ".parquet"
COLUMN_OPTIONS = frozenset({*(f"--{part}-column" for part in (*PARTS, TEXT)), "--keep-column"})


def recognises(name: str) -> bool:
    """What ends in .csv, .tsv or .parquet; a folder of such a name is a folder."""
    return _extension(name) in (*DIALECTS, PARQUET) and not os.path.isdir(name)


def open_table(
    name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: Callable[[], int] | None
) -> Source:
    """The files that a table names, or the images that a Parquet file holds. Raises SourceError and Stopped."""
    shown = ascii_name(name)
    is_text = _extension(name) in DIALECTS
    if not is_text:
        needed(shown)
    if kind.column and (texts := _open_texts(name, shown, kind, reading, limit, stop)) is not None:
        return texts
    with open_regular(name, shown) as file:
        if not is_text and has_images(schema_of(file, shown), reading):
            if is_address(name):
                raise SourceError(
                    f"{shown} holds {kind.plural} itself, which are read from a disk alone.",
                    hint="Copy it to a disk, and name that.",
                )
            return open_file(name, kind, reading=reading, limit=limit, stop=stop)
        entries = Entries(shown, "line" if is_text else "row", root_of(name, reading.root))
        for block in _text_rows(file, name, shown, reading) if is_text else parquet_rows(file, shown, reading):
            entries.add(block)
    return entries.source(name, kind, limit=limit, stop=stop)


def _open_texts(
    name: str, shown: str, kind: FileKind, reading: Reading, limit: int | None, stop: Callable[[], int] | None
) -> Source | None:
    """The texts that a table holds; None where it names files."""
    with ExitStack() as stack:
        file = stack.enter_context(open_regular(name, shown))
        table: TextsFile
        if _extension(name) in DIALECTS:
            table = CsvTexts(file, name, shown, _records, DIALECTS[_extension(name)])
            _check_header(table.columns, name, shown)
        else:
            table = ParquetTexts(file, name, shown)
        if not holds_texts(table.columns, kind, reading, shown):
            return None
        made = open_texts(name, table, kind, reading=reading, limit=limit, stop=stop)
        stack.pop_all()  # it stays open
        return made


def _text_rows(file: BinaryIO, path: str, shown: str, reading: Reading) -> Iterator[Rows]:
    table = csv.reader(text_lines(file, shown), DIALECTS[_extension(path)], strict=True)
    rows = _records(table, shown)
    header = next(rows, [])
    _check_header(header, path, shown)
    chosen = choose(header, reading, shown)
    parts = len(chosen.parts)
    places = [*chosen.parts.values(), *chosen.further.values()]
    pick = itemgetter(*places, 0)  # of a single one it gives no tuple
    numbered = ((table.line_num, *pick(row)[:-1]) for row in rows)
    while block := list(islice(numbered, BLOCK_ROWS)):
        numbers, *columns = zip(*block, strict=True)
        strings: dict[str, Any] = {
            f"{part}s": values for part, values in zip(chosen.parts, columns[:parts], strict=True)
        }
        yield Rows(numbers, **strings, further=dict(zip(chosen.further, columns[parts:], strict=True)))


def _check_header(header: list[str], path: str, shown: str) -> None:
    if not header:
        raise SourceError(f"{shown} is empty.", hint="Its first line names its columns; one of them is `path`.")
    if len(header) == 1 and (others := OTHER_SEPARATORS[_extension(path)] & {*header[0]}):
        raise SourceError(
            f"{shown} has one column, {ascii_name(header[0])[:200]!r}.",
            hint=f"Are others separated by {' or '.join(map(repr, sorted(others)))}? In a .csv they are by commas, "
            "in a .tsv by tabs.",
        )


def _records(table: Any, shown: str) -> Iterator[list[str]]:
    """The rows of a CSV reader that are not empty, which all have as many fields as the first."""
    width = 0
    while True:
        try:
            row = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            raise SourceError(
                f"{shown}, line {table.line_num:,}: {error}.",
                hint="Look for a quotation mark that is open, or written once inside a quoted text, which takes two.",
            ) from error
        width = width or len(row)
        if row and len(row) != width:
            raise SourceError(
                f"{shown}, line {table.line_num:,} has {len(row)} fields, and the header has {width}.",
                hint="A field that holds the separator must be in quotation marks.",
            )
        if row:
            yield row


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()
