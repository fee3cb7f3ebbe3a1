"""Labels and groups that a CSV file brings along: read, and joined with a cache by id or by path."""

from __future__ import annotations

import csv
import functools
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from precompute.cache import Cache
from precompute.errors import UsageError

SHOWN = 3  # ids that an error names


@dataclass(frozen=True)
class Table:
    """name: of the file · key: "id" or "path" · values: by it, "" for an empty cell."""

    name: str
    key: str
    values: dict[str, str]


def read_table(
    file: str | os.PathLike[str], value: str, *, keys: Sequence[str] = ("id",), empty: bool = False
) -> Table:
    """The columns `value` and the first of `keys` that it has, of a CSV file.

    empty: whether a cell of `value` may be empty. Raises UsageError for what is wrong with the file.
    """
    name = os.fspath(file)
    try:
        with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream)
            header = reader.fieldnames or ()
            key = next((key for key in keys if key in header), None)
            if key is None or value not in header:
                raise UsageError(
                    f"{name} must have the columns {keys[0]} and {value} in its first line"
                    + "".join(f" (or {other} instead of {keys[0]})" for other in keys[1:])
                    + f". Got {reader.fieldnames} instead.",
                    hint=f"Write lines such as `id,{value}` and `ants/1.jpg,{value}7`.",
                )
            if twice := [column for column in (key, value) if header.count(column) > 1]:
                raise UsageError(f"{name} has two columns {twice[0]!r}.", hint="Give each column its own name.")
            values: dict[str, str] = {}
            for row in reader:
                if None in row:
                    raise UsageError(
                        f"{name}, line {reader.line_num}: {row[key]!r} has more fields than the first line.",
                        hint='Write a value that holds a comma in quotes: "1,5".',
                    )
                identity, found = row[key], row[value]
                if found is None or not (found or empty) or values.setdefault(identity, found) != found:
                    what = f"two {value}s, {values[identity]!r} and {found!r}" if found else f"no {value}"
                    raise UsageError(
                        f"{name}, line {reader.line_num}: {identity!r} has {what}.",
                        hint=f"Give each {key} one {value}.",
                    )
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}.", hint="Check the name of the file.") from error
    except csv.Error as error:
        raise UsageError(f"{name} is not a CSV file: {error}.", hint=f"Write lines of `id,{value}`.") from error
    return Table(name, key, values)


def joined(cache: Cache, table: Table) -> list[str]:
    """The value of each row of `cache`, "" where the table has none.

    A path is compared with the ids as it is written, less `./` and the like. Where no path is an id, the files are
    compared: what a path names from the folder that the table is in, with what an id names below the source.
    Raises UsageError where no row of the table is one of the cache.
    """
    ids = cache.ids
    known = table.values if table.key == "id" else _by_path(cache, table, ids)
    if not any(name in known for name in ids):
        ours, theirs = ids[:SHOWN], list(table.values)[:SHOWN]
        raise UsageError(
            f"No {table.key} in {table.name} ({', '.join(map(repr, theirs))}, ...) is one of {cache.path} "
            f"({', '.join(map(repr, ours))}, ...).",
            hint=f"The column {table.key} must hold ids as `precompute export` writes them"
            + (", or paths to the files from the table's folder." if table.key == "path" else "."),
        )
    return [known.get(name, "") for name in ids]


def _by_path(cache: Cache, table: Table, ids: list[str]) -> dict[str, str]:
    """Values by id."""
    known: dict[str, str] = {}
    for path, value in table.values.items():
        _put(known, posixpath.normpath(path) if path else "", value, table)
    if any(name in known for name in ids):
        return known
    base = os.path.realpath(os.path.dirname(os.path.abspath(table.name)))
    for place in (str, functools.cache(os.path.realpath)):  # as written; and where links lead, as to the source
        for root in _roots(cache):
            inside: dict[str, str] = {}
            for path, value in known.items():
                if path:
                    folder, name = os.path.split(os.path.normpath(os.path.join(base, path)))
                    _put(inside, os.path.relpath(os.path.join(place(folder), name), root), value, table)
            if any(name in inside for name in ids):
                return inside
    return known


def _put(known: dict[str, str], name: str, value: str, table: Table) -> None:
    """Raises UsageError where `name` has another value already: the table may write one path in several ways."""
    if known.setdefault(name, value) != value:
        raise UsageError(
            f"{table.name} gives {name!r} two values, {known[name]!r} and {value!r}.", hint="Give each path one."
        )


def _roots(cache: Cache) -> list[str]:
    """Folders that the ids of a cache may be paths in: its source, or the folder of a table and its --root."""
    run = cache.last_run
    options, source = run.get("options"), run.get("source")
    root = options.get("root") if isinstance(options, dict) else None
    if isinstance(root, str):
        return [os.path.realpath(root)]
    return [os.path.realpath(source), os.path.realpath(os.path.dirname(source))] if isinstance(source, str) else []
