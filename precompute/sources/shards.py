"""WebDataset shards: tar files of samples, read at random through an index of where each image lies.

A sample is what has one name up to its first dot, as webdataset groups it; its image is the member with an image's
extension, its label the text of `.cls` or a field of `.json`. Nothing else in a shard is read, nothing is unpickled.
"""

from __future__ import annotations

import glob
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np
import xxhash
from numpy.typing import NDArray

from precompute.errors import SampleError, SourceError
from precompute.sources.base import FileKind, Raw, Reading, Source, Table, ascii_name, check_stop
from precompute.sources.braces import expand_braces
from precompute.sources.described import DescribedSamples, ShardField
from precompute.sources.files import MAX_FILE_BYTES, identity_of
from precompute.sources.labels import splits_in_names
from precompute.sources.remote.address import is_address
from precompute.sources.remote.shards import find_remote
from precompute.sources.remote.store import source_error
from precompute.sources.shard_files import LocalShards, ShardFiles, ShardState
from precompute.sources.tar_index import INDEXES, ShardIndex, header_check, index_shard
from precompute.sources.tree import Ignored

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

COLUMN_OPTIONS = frozenset({"--label-column", "--split-column", "--keep-column"})
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # all but the first are refused
ADDRESS = re.compile(r"(pipe:|[A-Za-z][A-Za-z0-9+.-]*://)")


@dataclass(frozen=True)
class Shards:
    """What a pattern stands for.

    base: the folder that shards are named relative to · shown, origin: the pattern, for messages and for the record ·
    paths: different · wild: patterns with an absolute folder that further shards would match · files: where they lie.
    """

    base: str
    shown: str
    origin: str
    paths: tuple[bytes, ...]
    wild: tuple[str, ...] = ()
    files: ShardFiles = field(default_factory=LocalShards)

    def name(self, path: bytes) -> bytes:
        """`train-000` for `shards/train-000.tar` of `shards/*.tar`."""
        return os.path.relpath(path, os.fsencode(self.base)).removesuffix(b".tar")


class ShardSource(Source):
    """The images of tar shards.

    table: ids are `SHARD/NAME`, such as `train-000/0001.jpg` · sizes: bytes of the image · mtimes: a digest of the
    shard's size and modification time and of the image's tar headers. A member's own time is not enough, since writers
    of shards often set a fixed one: once a shard has changed in any way, all of its samples are read again, and those
    whose bytes are the same keep their rows.
    """

    def __init__(
        self,
        shards: Shards,
        table: Table,
        places: Places,
        *,
        gaps: tuple[bytes, ...] = (),
        notes: tuple[str, ...] = (),
        ignored: tuple[str, ...] = (),
    ) -> None:
        self.shards = shards
        self.name = ascii_name(shards.shown)
        self.table = table
        self.gaps, self.notes, self.ignored = gaps, notes, ignored
        self._places = places
        self._files = frozenset(filter(None, map(identity_of, shards.paths if shards.files.local else ())))
        self.reads_at_once = shards.files.reads_at_once

    @property
    def origin(self) -> str:
        return self.shards.origin

    def order(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Shard by shard, each from its beginning to its end."""
        rows = rows[np.lexsort((self._places.offsets[rows], self._places.shards[rows]))]
        yield from np.split(rows, np.flatnonzero(np.diff(self._places.shards[rows])) + 1)

    def read(self, row: int) -> Raw:
        path = self.shards.paths[self._places.shards[row]]
        offset, head = int(self._places.offsets[row]), int(self._places.heads[row])
        size, check = int(self.table.sizes[row]), self._places.checks[row]
        if size > MAX_FILE_BYTES:
            raise SampleError(f"{size:,} bytes, more than {MAX_FILE_BYTES:,}", reason="UNREADABLE")
        content, state = self.shards.files.part(path, offset, head + size)
        if len(content) != head + size or header_check(content[:head]) != check:
            raise SampleError("the shard has changed since it was listed", reason="UNREADABLE")
        (stamp,) = _stamps(state, self._places.checks[row : row + 1])
        return Raw(content[head:], size, int(stamp))

    def alive(self) -> bool:
        return self.shards.files.alive(self.shards.paths)

    def patient(self, waits: bool) -> None:
        self.shards.files.patient(waits)

    def reads(self, path: str) -> bool:
        if not self.shards.files.local:
            return False
        folder, name = os.path.split(path)
        whole = os.path.join(os.path.realpath(folder), name)
        return (
            identity_of(os.fsencode(path)) in self._files
            or os.fsencode(whole) in map(os.path.realpath, self.shards.paths)
            or any(fnmatchcase(whole, pattern) for pattern in self.shards.wild)
        )


@dataclass(frozen=True)
class Places:
    """Where the image of each row lies. shards: (N,) int32, index into the paths · the others as in `ShardIndex`."""

    shards: NDArray[np.int32]
    offsets: NDArray[np.int64]
    heads: NDArray[np.int32]
    checks: NDArray[np.uint64]


def recognises(name: str) -> bool:
    """A pattern or path that ends in .tar, or in that of a compressed tar, which is refused; a folder is a folder."""
    return name.lower().endswith(ENDINGS) and not os.path.isdir(name)


def open_pattern(
    name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: Callable[[], int] | None
) -> ShardSource:
    """`open_shards`, as the registry calls it."""
    return open_shards(name, kind, reading=reading, limit=limit, stop=stop)


def open_shards(
    pattern: Paths,
    kind: FileKind,
    *,
    reading: Reading | None = None,
    limit: int | None = None,
    stop: Callable[[], int] | None = None,
) -> ShardSource:
    """List the images in WebDataset shards; the first `limit` of them by id.

    pattern: `shards/*.tar`, `data-{000..099}.tar`, one .tar file, or a list of files; also s3://bucket/shards/*.tar.
    reading: its columns "label" and "split", and what it keeps, are fields of the `.json` next to each image; without
    "label", labels are the text of `.cls`.

    An id is the shard's path below the pattern's fixed folder, without `.tar`, and the member's name. The image of a
    sample is the member with one of `kind.extensions`; of several, one whose whole extension it is (`a.jpg` before
    `a.mask.png`), then the first by name. Splits come from the names of shards (`train-000.tar`) or of their folders
    (`train/000.tar`), where all of them say one.
    A shard that cannot be read, or not to its end, is among `ignored` and `gaps`; its samples before the damage count.
    `stop()` is asked at each shard and every few hundred members; a signal's number ends the listing.
    Raises SourceError where nothing is found, and for addresses, compressed tar files and ids that come twice; Stopped.
    """
    shards = find_shards(pattern)
    found = _Found(shards, kind, stop, reading or Reading())
    for number, path in enumerate(shards.paths):
        found.add(number, path)
    INDEXES.drop_oldest()
    if found.failure is not None and not found.ids and not shards.files.local:
        raise source_error(ascii_name(os.fsdecode(shards.paths[0])), found.failure)
    if not sum(map(len, found.ids)):
        about = "; ".join(found.ignored.lines())
        raise SourceError(
            f"{ascii_name(shards.shown)} holds no {kind.plural}{f' ({about})' if about else ''}.",
            hint=f"Name tar files with {kind.formats} files in them, such as 'shards/*.tar'.",
        )
    return found.source(limit)


def find_shards(pattern: Paths) -> Shards:
    """The files that a pattern stands for, whether they exist or not. Raises SourceError."""
    if not isinstance(pattern, str | os.PathLike):
        paths = [os.fspath(path) for path in pattern]
        for path in paths:
            _refuse_address(path)
        base = os.path.commonpath([os.path.abspath(os.path.dirname(path)) for path in paths]) if paths else "."
        shown = f"{len(paths):,} shards in {base}"
        return _shards(Shards(base, shown, shown, ()), paths)
    text = os.fspath(pattern)
    if is_address(text):
        found, paths, files = find_remote(text)
        return _shards(Shards(found.url, found.shown, text, (), files=files), paths)
    _refuse_address(text)
    if os.path.isdir(text):
        hint = f"Name its tar files: {os.path.join(ascii_name(text), '*.tar')}"
        raise SourceError(f"{ascii_name(text)} is a folder, not a tar file.", hint=hint)
    if os.path.lexists(text):
        return _shards(Shards(os.path.dirname(text) or ".", text, os.path.abspath(text), ()), [text])
    folder = os.path.dirname(re.split(r"[*?\[{]", text, maxsplit=1)[0])
    paths, wild = [], []
    for one in expand_braces(text):
        if glob.has_magic(one):
            paths += sorted(glob.glob(one, recursive=True))
            wild.append(os.path.join(glob.escape(os.path.realpath(folder)), one[len(folder) :].lstrip("/")))
        else:
            paths.append(one)
    if not paths or paths == [text]:
        missing = "does not exist" if paths else "matches no file"
        raise SourceError(f"{ascii_name(text)} {missing}.", hint="Check the path for a typing error.")
    return _shards(Shards(folder or ".", text, os.path.abspath(text), (), tuple(wild)), paths)


def _refuse_address(text: str) -> None:
    if found := ADDRESS.match(text):  # the rest may hold a password
        raise SourceError(
            f"Shards are read from files, not from an address that begins with {found[1]}, and no command is run.",
            hint="Copy the shards to a disk, and name them there.",
        )
    if "\0" in text:
        raise SourceError("A name of a shard holds NUL.", hint="Check the list of shards.")


def _shards(shards: Shards, paths: Sequence[str]) -> Shards:
    seen: set[str] = set()
    for path in paths:
        plain = os.path.normpath(path)
        if plain in seen:
            raise SourceError(f"{ascii_name(path)} is named twice.", hint="Name each shard once.")
        seen.add(plain)
    return replace(shards, paths=tuple(map(os.fsencode, paths)))


@dataclass
class _Found:
    """What the shards hold, one entry a shard in each list."""

    shards: Shards
    kind: FileKind
    stop: Callable[[], int] | None
    reading: Reading
    ids: list[NDArray[np.bytes_]] = field(default_factory=list)
    indexes: list[ShardIndex] = field(default_factory=list)
    stamps: list[NDArray[np.int64]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    gaps: list[bytes] = field(default_factory=list)
    ignored: Ignored = field(default_factory=Ignored)
    described: dict[str, ShardField] = field(default_factory=dict)
    failure: OSError | None = None  # why the first shard that could not be read at all was not

    def __post_init__(self) -> None:
        columns = self.reading.columns
        asked = [*(columns[part] for part in ("label", "split") if part in columns), *self.reading.keep]
        self.described = {name: ShardField(name) for name in asked}

    @property
    def fields(self) -> tuple[str, ...]:
        """Those of each `.json` that are read."""
        return tuple(self.described)

    def add(self, number: int, path: bytes) -> None:
        """Index one shard; one that cannot be read becomes a gap."""
        self._check()
        prefix, files = self.shards.name(path) + b"/", self.shards.files
        try:
            with files.opened(path) as shard:
                shown = ascii_name(os.fsdecode(path))
                index = index_shard(shard, files.real(path), self.kind, self.fields, shown, self._check)
        except OSError as error:
            why = "do not exist" if isinstance(error, FileNotFoundError) else f"are not readable ({error.strerror})"
            self.ignored.add(f"shards that {why}", path)
            self.gaps.append(prefix)
            self.failure = self.failure or error
            return
        if index.damage:
            self.ignored.add("damaged shards, used up to the damage", path + b": " + index.damage.encode())
            self.gaps.append(prefix)
        for about, count in index.ignored.counts.items():
            names = index.ignored.names[about]
            for name in names:
                self.ignored.add(about, prefix + os.fsencode(name))
            self.ignored.counts[about] += count - len(names)
        self.ids.append(np.char.add(prefix, index.names) if len(index.names) else np.zeros(0, "S1"))
        for place, name in enumerate(self.fields):
            self.described[name].add(index, place, ascii_name(self.shards.shown))
        self.indexes.append(replace(index, values=index.values[:0]))  # those of all shards together may be large
        self.stamps.append(_stamps(shard.state, index.checks))
        self.numbers.append(number)

    def _check(self) -> None:
        check_stop(self.stop, f"{ascii_name(self.shards.shown)} was being listed")

    def source(self, limit: int | None) -> ShardSource:
        """All shards in one table, ordered by id."""
        ids = np.concatenate(self.ids)
        rows = np.arange(len(ids)) if np.all(ids[:-1] < ids[1:]) else np.argsort(ids, kind="stable")
        shards = np.repeat(np.array(self.numbers, dtype=np.int32), [len(ids) for ids in self.ids])
        self._refuse_twins(ids, rows, shards)
        rows = rows[:limit]
        described = DescribedSamples(self.described, rows, ascii_name(self.shards.shown))
        label, split = (self.reading.columns.get(part) for part in ("label", "split"))
        labels, classes = self._labels(rows) if label is None else described.labels(label)
        by_shard, notes = splits_in_names([self.shards.name(path) for path in self.shards.paths])
        splits = by_shard[shards[rows]]
        if split is not None:
            splits, notes = described.splits(split, ids[rows]), []
        if classes and (unlabelled := int((labels < 0).sum())):
            missing = ".cls next to them" if label is None else f"{ascii_name(label)!r} in their .json"
            notes.append(f"{unlabelled} {self.kind.plural} have no {missing} and so no label")
        further = {name: described.column(name) for name in dict.fromkeys(self.reading.keep)}
        sizes, offsets, heads, checks = (
            np.concatenate([getattr(index, name) for index in self.indexes])[rows]
            for name in ("sizes", "offsets", "heads", "checks")
        )
        return ShardSource(
            self.shards,
            Table(ids[rows], sizes, np.concatenate(self.stamps)[rows], labels, splits, classes, further),
            Places(shards[rows], offsets, heads, checks),
            gaps=tuple(self.gaps),
            notes=tuple(notes),
            ignored=tuple(self.ignored.lines()),
        )

    def _refuse_twins(self, ids: NDArray[np.bytes_], rows: NDArray[np.int64], shards: NDArray[np.int32]) -> None:
        for place in np.flatnonzero(ids[rows[:-1]] == ids[rows[1:]])[:1]:
            both = (self.shards.paths[shards[row]] for row in rows[place : place + 2])
            name, one, other = (ascii_name(os.fsdecode(text)) for text in (bytes(ids[rows[place]]), *both))
            raise SourceError(
                f"Two samples have the id {name}: one in {one}, one in {other}.",
                hint="Rename one of the shards, or a member in it.",
            )

    def _labels(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int32], tuple[bytes, ...]]:
        """Labels of `rows` of all shards, and the classes that these have, ascending."""
        names = sorted({name for index in self.indexes for name in index.classes.tolist()})
        number = {name: place for place, name in enumerate(names)}
        parts = []
        for index in self.indexes:
            there = np.array([*(number[name] for name in index.classes.tolist()), -1], dtype=np.int32)
            parts.append(there[index.labels])  # -1, the last of them, stays -1
        labels = np.concatenate(parts)[rows]
        used = np.unique(labels[labels >= 0])
        renumbered = np.full(len(names) + 1, -1, dtype=np.int32)
        renumbered[used] = np.arange(len(used))
        return renumbered[labels], tuple(names[label] for label in used)


def _stamps(state: ShardState, checks: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(n,) second stamps of images with these header checks in a shard of this state."""
    shard = np.uint64(xxhash.xxh3_64_intdigest(struct.pack("<qq", state.size, state.stamp)))
    return ((checks ^ shard) >> np.uint64(1)).astype(np.int64)
