"""Files that a table or a list names one by one -> a source, as columns in the order of ids.

What such a text says is not trusted: a path leads to nothing outside of the root, an id stands once, and no string is
so long that columns of fixed width would not fit into memory. Links are followed, as those in a folder are.
"""

from __future__ import annotations

import errno
import os
import posixpath
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from precompute.errors import SourceError
from precompute.sources.base import FileKind, Table, ascii_name, check_stop
from precompute.sources.files import EARLIEST, FilesSource, mtime_ns
from precompute.sources.further import FurtherColumn, check_width
from precompute.sources.labels import SPLIT_NAMES
from precompute.sources.remote.address import absolute, address_of, is_address
from precompute.sources.remote.named import NamedObjects, objects_named
from precompute.sources.tree import STOP_ENTRIES, pseudo_file_systems

BLOCK_ROWS = 16_384
"""So many rows at most are Python objects."""

MAX_STRING_BYTES = 4096  # of a path, an id or a label: what Linux takes for a path
PATHS = "Paths are relative to its folder, or to --root FOLDER."
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""What the look for a file that is not there gives; all else, such as a lost permission, may be over tomorrow."""

SHOWN = 60  # letters of a string in a message


@dataclass(frozen=True)
class Rows:
    """Some rows of a table: their numbers in it, and columns of strings as they are written; None: it has none.

    paths: None where the samples are no files, which have ids then · further: columns that are kept, by name · texts:
    those of them that are strings whatever they look like.
    """

    numbers: Sequence[int]
    paths: Sequence[str] | None
    ids: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    further: Mapping[str, Sequence[str]] = field(default_factory=dict)
    texts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Listed:
    """All rows in the order of ids.

    table: its stamps are 0 · numbers: (N,) int64, those of the rows · paths: (N,), None where each is the id.
    """

    table: Table
    numbers: NDArray[np.int64]
    paths: NDArray[np.bytes_] | None


class NamedFiles(FilesSource):
    """Files that a table or a list names.

    listing: path of that file, None where it is a stream · paths: (N,) relative to `root`; None where the ids are.
    """

    def __init__(self, listing: str | None, root: bytes, table: Table, paths: NDArray[np.bytes_] | None) -> None:
        super().__init__(root, table)
        self._listing = listing
        self._paths = table.ids if paths is None else paths
        self.name = "standard input" if listing is None else ascii_name(listing)

    @property
    def origin(self) -> str:
        return "-" if self._listing is None else absolute(self._listing)

    def path(self, row: int) -> bytes:
        return os.path.join(self.root, bytes(self._paths[row]))

    def reads(self, path: str) -> bool:
        name = os.path.realpath(path)
        if self._listing is not None and name == os.path.realpath(self._listing):
            return True
        inside = os.path.relpath(os.fsencode(name), os.path.realpath(self.root))
        return bool(np.any(self._paths == inside)) or super().reads(path)  # the first: also before it is made


class Entries:
    """What a table or a list holds, block by block.

    shown: its name for messages · unit: what its rows are counted in, "line" or "row" · root: see `Reading`.
    """

    def __init__(self, shown: str, unit: str, root: str) -> None:
        self.shown, self.unit = shown, unit
        self.root = os.fsencode(root)
        self._bucket = address_of(root) if is_address(root) else None
        if self._bucket is None:
            self._inside = os.path.abspath(self.root)
        else:  # of what is below / for this purpose, as if buckets were folders
            self._inside = os.fsencode(f"/{self._bucket.bucket}/{self._bucket.key}".rstrip("/"))
        self._numbers: list[NDArray[np.int64]] = []
        self._ids: list[NDArray[np.bytes_]] = []
        self._paths: list[NDArray[np.bytes_]] = []
        self._own_ids = False  # so far each id is the path to its file
        self._labels = array("i")
        self._splits = bytearray()
        self._classes: dict[str, int] = {}
        self._split_codes: dict[str, int] = {"": 0}
        self._further: dict[str, FurtherColumn] = {}
        self._rows = self._width = self._letters = 0  # the width is that of the longest path or id

    def add(self, rows: Rows) -> None:
        """Take up to BLOCK_ROWS of them. Raises SourceError, with the row."""
        paths = None
        if rows.paths is not None:
            paths = [self._path(path, number) for path, number in zip(rows.paths, rows.numbers, strict=True)]
        names = rows.ids if rows.ids is not None else rows.paths or ()
        ids = [self._string(name, "id", number) for name, number in zip(names, rows.numbers, strict=True)]
        paths = ids if paths is None else paths
        alike = paths == ids
        self._own_ids = self._own_ids or not alike
        self._rows += len(ids)
        self._width = max(self._width, *map(len, ids), *map(len, paths))
        self._letters += sum(map(len, ids))
        self._check_width("paths or ids", self._width, self._letters)
        self._numbers.append(np.array(rows.numbers, dtype=np.int64))
        self._ids.append(np.array(ids, dtype=np.bytes_))
        self._paths.append(self._ids[-1] if alike else np.array(paths, dtype=np.bytes_))
        if rows.labels is not None:
            self._labels.extend(self._label(label, n) for label, n in zip(rows.labels, rows.numbers, strict=True))
        if rows.splits is not None:
            self._splits.extend(self._split(split, n) for split, n in zip(rows.splits, rows.numbers, strict=True))
        for name, values in rows.further.items():
            what = f"value of {ascii_name(name)!r}"
            encoded = [self._string(one, what, n, empty=True) for one, n in zip(values, rows.numbers, strict=True)]
            column = self._further.setdefault(name, FurtherColumn(is_text=name in rows.texts))
            column.add(values, encoded)
            self._check_width(f"values of {ascii_name(name)!r}", column.width, column.letters)

    def source(
        self, listing: str | None, kind: FileKind, *, limit: int | None, stop: Callable[[], int] | None
    ) -> NamedFiles | NamedObjects:
        """The files, looked up on the disk or in the store; those that are not there keep their rows, and fail later.

        Raises SourceError for no rows, a duplicate id, and where none of the files is there; Stopped.
        """
        listed = self.listed(kind, limit)
        table, paths = listed.table, listed.paths
        named = table.ids if paths is None else paths
        made: NamedFiles | NamedObjects
        if self._bucket is not None:
            doing = f"the objects of {self.shown} were looked up"
            store, sizes, mtimes, unseen = objects_named(self._bucket, named, lambda: check_stop(stop, doing))
            made = NamedObjects(listing, store, self._bucket, replace(table, sizes=sizes, mtimes=mtimes), paths)
        else:
            sizes, mtimes, unseen = self._stamps(named, kind, stop)
            made = NamedFiles(listing, self.root, replace(table, sizes=sizes, mtimes=mtimes), paths)
        made.unseen = unseen
        return made

    def listed(self, kind: FileKind, limit: int | None) -> Listed:
        """What was added, the first `limit` by id, and nothing is left here.

        Raises SourceError for no rows, and for a duplicate id.
        """
        if not self._ids:
            raise SourceError(f"{self.shown} names no {kind.plural}.", hint=f"Give it a {self.unit} for each of them.")
        numbers, ids = np.concatenate(self._numbers), np.concatenate(self._ids)
        paths = np.concatenate(self._paths) if self._own_ids else None
        self._numbers, self._ids, self._paths = [], [], []
        labels = np.array(self._labels, dtype=np.int32) if self._labels else np.full(len(ids), -1, dtype=np.int32)
        splits = np.frombuffer(self._splits, dtype=np.uint8) if self._splits else np.zeros(len(ids), dtype=np.uint8)
        order = slice(None) if np.all(ids[:-1] < ids[1:]) else np.argsort(ids, kind="stable")
        numbers, ids = numbers[order], ids[order]
        self._check_unique(ids, numbers)
        ids = ids[:limit]
        labels, classes = self._ordered_classes(labels[order][:limit])
        further = {name: column.array()[order][:limit] for name, column in self._further.items()}
        sizes, mtimes = np.zeros((2, len(ids)), dtype=np.int64)
        table = Table(ids, sizes, mtimes, labels, splits[order][:limit].copy(), classes, further)
        return Listed(table, numbers[:limit], None if paths is None else paths[order][:limit])

    def _path(self, path: str, number: int) -> bytes:
        """The path relative to the root, without `.`, `..` and the like."""
        inside = path = self._below_buckets(path, number) if is_address(path) else path
        if path.startswith(("/", ".")) or path.endswith("/") or "//" in path or "/." in path:
            inside = posixpath.normpath(path)
            if inside.startswith("/"):
                inside = posixpath.relpath(inside, os.fsdecode(self._inside))
            if inside == ".." or inside.startswith("../"):
                raise self._wrong(
                    f"leads out of {ascii_name(os.fsdecode(self._inside))}: {_short(path)}.",
                    number,
                    PATHS,
                )
        return self._string(inside, "path", number)

    def _below_buckets(self, address: str, number: int) -> str:
        """An address below the root as a path, as if buckets were folders; what is wrong shows no secret in it."""
        try:
            found = address_of(address)
        except SourceError as error:
            raise self._wrong(f"holds an invalid address. {error.message}", number, error.hint) from None
        if self._bucket is None or found.protocol != self._bucket.protocol:
            raise self._wrong(
                f"holds an address that begins with {found.protocol}://, which is not below the root.",
                number,
                "Name what all addresses are below, and have paths below it alone: --root PROTOCOL://BUCKET/PREFIX.",
            )
        return f"/{found.bucket}/{found.key}"

    def _string(self, text: str, what: str, number: int, *, empty: bool = False) -> bytes:
        try:
            encoded = text.encode()
        except UnicodeEncodeError as error:
            raise self._wrong(f"has no {what} in UTF-8: {_short(text)}.", number, "Write it as UTF-8.") from error
        if not (encoded or empty):
            raise self._wrong(f"has an empty {what}.", number, f"Give each {self.unit} one, or remove it.")
        if len(encoded) > MAX_STRING_BYTES:
            raise self._wrong(
                f"has a {what} of {len(encoded):,} bytes, more than {MAX_STRING_BYTES:,}: {_short(text)}.",
                number,
                "Is it another column that holds it?",
            )
        if "\0" in text:
            raise self._wrong(f"has a NUL in its {what}: {_short(text)}.", number, "Remove it.")
        return encoded

    def _label(self, label: str, number: int) -> int:
        code = self._classes.get(label)
        if code is None:
            self._string(label, "label", number, empty=True)
            code = self._classes[label] = len(self._classes) if label else -1
        return code

    def _split(self, split: str, number: int) -> int:
        code = self._split_codes.get(split)
        if code is None:
            code = SPLIT_NAMES.get(split.lower().encode(errors="replace"))
            if code is None:
                known = ", ".join(name.decode() for name in SPLIT_NAMES)
                raise self._wrong(
                    f"has the split {_short(split)}, which is none.", number, f"Write one of {known}, or nothing."
                )
            self._split_codes[split] = code
        return code

    def _wrong(self, what: str, number: int, hint: str) -> SourceError:
        return SourceError(f"{self.shown}, {self.unit} {number:,} {what}", hint=hint)

    def _check_width(self, what: str, width: int, letters: int) -> None:
        check_width(self.shown, what, rows=self._rows, width=width, letters=letters)

    def _check_unique(self, ids: NDArray[np.bytes_], numbers: NDArray[np.int64]) -> None:
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        if len(twice):
            row = int(twice[0])
            more = f", and {len(twice) - 1:,} more ids are duplicated" if len(twice) > 1 else ""
            raise SourceError(
                f"{self.shown} has the id {_short(ids[row].decode())} in {self.unit}s {numbers[row]:,} and "
                f"{numbers[row + 1]:,}{more}.",
                hint="Each sample needs its own id: remove one, or name a column of different ids.",
            )

    def _ordered_classes(self, labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], tuple[bytes, ...]]:
        """Labels that count the classes in their order, of those that these rows have."""
        names = [name.encode() for name, code in self._classes.items() if code >= 0]
        codes = [code for code in self._classes.values() if code >= 0]
        there = np.zeros(max(codes, default=-1) + 1, dtype=bool)
        there[labels[labels >= 0]] = True
        kept = sorted((name, code) for name, code in zip(names, codes, strict=True) if there[code])
        place = np.full(len(there) + 1, -1, dtype=np.int32)  # the last is that of -1
        place[[code for _, code in kept]] = np.arange(len(kept))
        return place[labels], tuple(name for name, _ in kept)

    def _stamps(
        self, paths: NDArray[np.bytes_], kind: FileKind, stop: Callable[[], int] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, ...]]:
        """Size and modification time of each file, no file's for a missing one; rows for which neither is known."""
        self._check_root(kind)
        prefix = os.path.join(self.root, b"")
        sizes, mtimes = np.zeros(len(paths), dtype=np.int64), np.full(len(paths), EARLIEST, dtype=np.int64)
        there, unseen = 0, list[int]()
        for start in range(0, len(paths), STOP_ENTRIES):
            check_stop(stop, f"the files of {self.shown} were looked up, {start:,} of {len(paths):,}")
            for row, path in enumerate(paths[start : start + STOP_ENTRIES].tolist(), start):
                try:
                    status = os.stat(prefix + path)
                except OSError as error:
                    if error.errno not in ABSENT:
                        unseen.append(row)
                    continue
                there += 1
                sizes[row], mtimes[row] = status.st_size, mtime_ns(status)
        if not there:
            raise SourceError(
                f"None of the {len(paths):,} files that {self.shown} names is there; the first would be "
                f"{_short(os.fsdecode(prefix + bytes(paths[0])))}.",
                hint=PATHS,
            )
        return sizes, mtimes, tuple(unseen)

    def _check_root(self, kind: FileKind) -> None:
        shown = ascii_name(os.fsdecode(self.root))
        try:
            status = os.stat(self.root)
        except OSError as error:
            hint = "Name the folder that the paths are relative to: --root FOLDER."
            raise SourceError(f"The folder {shown} cannot be read: {error.strerror}.", hint=hint) from error
        if (system := pseudo_file_systems().get(status.st_dev)) is not None:
            raise SourceError(
                f"{shown} is on a pseudo file system ({system}), which holds no {kind.plural}.",
                hint=f"Name a folder of {kind.plural}: --root FOLDER.",
            )


def root_of(listing: str, root: str | None) -> str:
    """The folder that paths are relative to."""
    return root if root is not None else os.path.dirname(listing) or "."


def _short(text: str) -> str:
    shown = ascii_name(text[: SHOWN + 1])
    return repr(shown if len(text) <= SHOWN else f"{shown[:SHOWN]}...").replace("\\\\", "\\")
