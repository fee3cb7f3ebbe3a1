"""Where the images of a tar file lie: one pass over its headers, with the memory of one header at a time.

Headers are parsed by `tarfile.TarInfo`. What is between them is read here and not by `tarfile.TarFile`, which takes
damage in the middle for the end of the file, and as much memory for a header as the header says. Members are grouped
into samples as webdataset does: by folder and name up to the first dot.

The index of a large file is kept in the user's cache folder, named after the file's path. It counts as long as size,
time and inode of the file (in a store, size and ETag) are the same; `ShardIndex.checks` proves each member again when
it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import posixpath
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from precompute.errors import SourceError
from precompute.sources.base import FileKind, ascii_name
from precompute.sources.json_fields import MAX_JSON_BYTES, Field, fields_of
from precompute.sources.shard_files import OpenShard, ShardState
from precompute.sources.tree import Ignored
from precompute.system.kept_files import KeptFiles

BLOCK = tarfile.BLOCKSIZE
END = bytes(BLOCK)  # tar writes it twice
MAX_HEAD = 64 * 1024  # bytes of all headers of one member: they are read again with each sample
MAX_NAME = 1024  # bytes: ids have a fixed length, so that one long name would widen all of them
MAX_LABEL = 255  # bytes, as in the name of a folder
LABEL_FILE_BYTES = 1024  # a label may stand between spaces and line ends
MAX_PADDING = 2**20  # zeros behind the end; GNU tar fills a record, of 10 KiB by default
STOP_MEMBERS = 512  # after so many members `check` is called again
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

VERSION = 2  # of a kept index
KEPT_FROM = 512  # members: fewer are listed in a moment
KEPT_BYTES = 2**30  # of all kept indexes together: about 40 million samples
KEPT_NUMBER = 2**20
INDEXES = KeptFiles("shards", ".index", largest=KEPT_BYTES, most=KEPT_NUMBER, total=KEPT_BYTES)
COLUMNS = ("names", "offsets", "heads", "sizes", "checks", "labels", "classes", "values", "texts", "present")


@dataclass(frozen=True)
class ShardIndex:
    """The images of one tar file, ordered by name.

    names: (n,) fixed-length bytes, unique, without a leading `./` · offsets: (n,) int64, of a member's first header ·
    heads: (n,) int32, bytes of its headers; its data follow · sizes: (n,) int64, bytes of its data · checks: (n,)
    uint64, XXH3 of its headers · labels: (n,) int32, index into `classes` or -1 · classes: in no order · values:
    (n, fields) fixed-length bytes, of the fields that were requested of each `.json` · texts, present: (fields,) bool,
    whether any is a text, and there · members: of any kind · damage: what is wrong with the file behind the last of
    them, "" for a whole file.
    """

    names: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    heads: NDArray[np.int32]
    sizes: NDArray[np.int64]
    checks: NDArray[np.uint64]
    labels: NDArray[np.int32]
    classes: NDArray[np.bytes_]
    values: NDArray[np.bytes_]
    texts: NDArray[np.bool_]
    present: NDArray[np.bool_]
    ignored: Ignored
    members: int
    damage: str = ""


class Damage(Exception):
    """The headers of a tar file cannot be followed any further."""


@dataclass(frozen=True, slots=True)
class Member:
    """name: as it is there · offset, head: of its headers · size: of its data · problem: why it is no field."""

    name: bytes
    offset: int
    head: int
    size: int
    problem: str


def index_shard(
    shard: OpenShard, real: bytes, kind: FileKind, fields: tuple[str, ...], shown: str, check: Callable[[], None]
) -> ShardIndex:
    """The index of the open file, from the user's cache folder where it is kept there; else it is made, and kept.

    real: what names the file wherever a path to it starts · fields: of each `.json` · check: called now and then; what
    it raises ends the listing. Raises OSError, and SourceError for a file that is compressed or holds a name twice,
    and for fields that cannot be used.
    """
    name, about = _kept_name(real, fields), _about(real, shard.state, kind, fields)
    kept = _load(name, about)
    if kept is not None:
        return kept
    index = _scan(_Window(shard), shown, kind, fields, check)
    if index.members >= KEPT_FROM and not index.damage:
        with contextlib.suppress(OSError):  # it only saves time: a full or read-only disk is no reason to stop
            _keep(name, about, index)
    return index


def header_check(head: bytes | memoryview) -> int:
    """What `ShardIndex.checks` holds of a member's headers: its name, size and time are among them."""
    return xxhash.xxh3_64_intdigest(head)


class _Window:
    """Parts of an open file, read as many bytes at once as is best there."""

    def __init__(self, shard: OpenShard) -> None:
        self.size = shard.state.size
        self._shard = shard
        self._start, self._data = 0, b""

    def at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on; fewer at the end of the file."""
        inside = offset - self._start
        if not 0 <= inside <= len(self._data) - size:
            self._start, self._data, inside = offset, self._shard.read(offset, max(size, self._shard.window)), 0
        return self._data[inside : inside + size]


def _members(tar: _Window) -> Iterator[Member]:
    """All members but folders, in the order of the file. Raises Damage where that is not the file's end."""
    place = start = 0
    longer = _Extended()
    while block := tar.at(place, BLOCK):
        if block == END:
            _check_end(tar, place)
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Damage(f"no tar header at byte {place:,} ({error})") from error
        data, size = place + BLOCK, header.size
        if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            place = _behind(tar, data, size)
            longer.read(tar, data, size, pax=header.type != tarfile.GNUTYPE_LONGNAME)
            continue
        if header.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):  # of all members, or of a link
            place, before = _behind(tar, data, size), place
            start = place if start == before and header.type == tarfile.XGLTYPE else start
            continue
        if header.type == tarfile.GNUTYPE_SPARSE:
            data = _behind_sparse(tar, block, data)
        has_data = header.type in tarfile.REGULAR_TYPES or header.type not in tarfile.SUPPORTED_TYPES
        size = longer.size if longer.size is not None else size
        place = _behind(tar, data, size if has_data and not header.isdir() else 0)
        if not header.isdir():
            name = longer.name if longer.name is not None else header.name.encode("utf-8", "surrogateescape")
            problem = longer.problem or _problem(header, data - start)
            yield Member(name, start, data - start, size, problem)
        start, longer = place, _Extended()
    raise Damage("it ends without the end of a tar file, so it is truncated" if tar.size else "it is empty")


@dataclass
class _Extended:
    """What the headers in front of a member's own say of it. problem: why it cannot be used, or ""."""

    name: bytes | None = None
    size: int | None = None
    problem: str = ""

    def read(self, tar: _Window, data: int, size: int, *, pax: bool) -> None:
        if size > MAX_HEAD:
            self.problem = f"with headers of more than {MAX_HEAD:,} bytes"
        elif pax:
            self._read_pax(tar.at(data, size))
        else:
            self.name = tar.at(data, size).partition(b"\0")[0]

    def _read_pax(self, records: bytes) -> None:
        """Lines such as `18 path=a/b.jpg`, each with its own length in front."""
        while records:
            digits, _, _ = records[:21].partition(b" ")
            length = int(digits) if digits.isdigit() else 0
            line, records = records[:length], records[length:]
            key, equals, value = line[len(digits) + 1 : -1].partition(b"=")
            if len(line) != length or not line.endswith(b"\n") or not equals:
                self.problem = "with malformed PAX headers"
                return
            if key == b"path":
                self.name = value
            elif key == b"size" and value.isdigit() and len(value) < 20:
                self.size = int(value)
            elif key.startswith(b"GNU.sparse."):
                self.problem = "sparse files"


def _problem(header: tarfile.TarInfo, head: int) -> str:
    if header.issym() or header.islnk():
        return "links"
    if header.type == tarfile.GNUTYPE_SPARSE:
        return "sparse files"
    if not header.isreg():
        return "neither file nor folder"
    return f"with headers of more than {MAX_HEAD:,} bytes" if head > MAX_HEAD else ""


def _behind(tar: _Window, data: int, size: int) -> int:
    """Where the next header lies. Raises Damage where that is beyond the end of the file."""
    if size < 0:
        raise Damage(f"a size below zero before byte {data:,}")
    if data + size > tar.size:
        raise Damage(f"it is truncated at byte {tar.size:,} within a member of {size:,} bytes")
    return data + -(-size // BLOCK) * BLOCK


def _behind_sparse(tar: _Window, block: bytes, place: int) -> int:
    """The data of a sparse member of GNU tar are behind further blocks that say where its holes are."""
    flag = 482
    while block[flag : flag + 1].strip(b"\0"):
        block, place, flag = tar.at(place, BLOCK), place + BLOCK, 504
    return place


def _check_end(tar: _Window, place: int) -> None:
    """Raise Damage unless nothing but a few zeros follow: a hole in the middle of a file looks like its end."""
    if tar.size - place > MAX_PADDING or tar.at(place, tar.size - place).strip(b"\0"):
        raise Damage(f"more bytes behind its end at byte {place:,}, such as of a second tar file, are not read")


def _scan(tar: _Window, shown: str, kind: FileKind, fields: tuple[str, ...], check: Callable[[], None]) -> ShardIndex:
    for magic, name in COMPRESSED.items():
        if tar.at(0, len(magic)) == magic:
            raise SourceError(
                f"{shown} is compressed ({name}), so no sample in it can be read on its own.",
                hint="Unpack it to a plain .tar first: images are compressed already.",
            )
    samples, damage, members = _Samples(tar, shown, kind, fields), "", 0
    try:
        for members, member in enumerate(_members(tar), 1):
            if members % STOP_MEMBERS == 1:
                check()
            samples.add(member)
    except Damage as error:
        damage = str(error)
    return samples.index(members, damage)


@dataclass
class _Samples:
    """The samples of one tar file, by key: the best image so far, the label, and what its `.json` says.

    bare: keys without an image yet.
    """

    tar: _Window
    shown: str
    kind: FileKind
    fields: tuple[str, ...] = ()
    images: dict[bytes, tuple[bool, bytes, Member, int]] = field(default_factory=dict)
    labels: dict[bytes, tuple[int, Member]] = field(default_factory=dict)
    classes: dict[bytes, int] = field(default_factory=dict)
    described: dict[bytes, tuple[list[Field], Member]] = field(default_factory=dict)
    bare: set[bytes] = field(default_factory=set)
    ignored: Ignored = field(default_factory=Ignored)

    def add(self, member: Member) -> None:
        """Put a member into its sample, or among what is ignored."""
        name = posixpath.normpath(member.name)
        folder, slash, base = name.rpartition(b"/")
        stem, dot, extension = base.partition(b".")
        if problem := member.problem or _name_problem(member.name, stem, dot):
            self.ignored.add(problem, member.name[:MAX_NAME])
            return
        key, extension = folder + slash + stem, extension.lower()
        plain = b"." + extension in self.kind.extensions
        if plain or b"." + extension.rpartition(b".")[2] in self.kind.extensions:
            check = header_check(self.tar.at(member.offset, member.head))  # now, while it is in memory
            self._add_image(key, (not plain, name, member, check))
        else:
            if extension == b"cls":
                self._add_label(key, member)
            elif extension == b"json" and self.fields:
                self._describe(key, member)
            if key not in self.images:
                self.bare.add(key)

    def _add_image(self, key: bytes, image: tuple[bool, bytes, Member, int]) -> None:
        self.bare.discard(key)
        other = self.images.get(key)
        if other is not None:
            if other[1] == image[1]:
                raise self._twice(other[2], image[2])
            image, further = (image, other) if image[:2] < other[:2] else (other, image)
            self.ignored.add("further images of a sample", further[1])
        self.images[key] = image

    def _add_label(self, key: bytes, member: Member) -> None:
        if key in self.labels:
            raise self._twice(self.labels[key][1], member)
        text = b""
        if member.size <= LABEL_FILE_BYTES:
            text = self.tar.at(member.offset + member.head, member.size).strip()
        if 0 < len(text) <= MAX_LABEL and all(byte >= 32 and byte != 127 for byte in text):
            self.labels[key] = self.classes.setdefault(text, len(self.classes)), member
        else:
            self.labels[key] = -1, member
            self.ignored.add(f"labels that are not one line of 1 to {MAX_LABEL} bytes", member.name)

    def _describe(self, key: bytes, member: Member) -> None:
        if key in self.described:
            raise self._twice(self.described[key][1], member)
        where = f"{self.shown}, {ascii_name(os.fsdecode(member.name))}"
        if member.size > MAX_JSON_BYTES:
            raise SourceError(
                f"{where} has {member.size:,} bytes, more than {MAX_JSON_BYTES:,}.", hint="Write the shard again."
            )
        content = self.tar.at(member.offset + member.head, member.size)
        self.described[key] = fields_of(content, self.fields, where), member

    def _twice(self, one: Member, other: Member) -> SourceError:
        name = ascii_name(os.fsdecode(other.name))
        return SourceError(
            f"{self.shown} holds {name} twice, at byte {one.offset:,} and at byte {other.offset:,}.",
            hint="Write the shard again with one member of that name.",
        )

    def index(self, members: int, damage: str) -> ShardIndex:
        for key in self.bare:
            self.ignored.add(f"samples without {self.kind.single}", key)
        rows = sorted((name, key) for key, (_, name, _, _) in self.images.items())
        found = [self.images[key] for _, key in rows]
        none: list[Field] = [("", False, False)] * len(self.fields)
        described = [self.described[key][0] if key in self.described else none for _, key in rows]
        values = [[value.encode() for value, _, _ in one] for one in described]
        texts = [any(one[place][1] for one in described) for place in range(len(self.fields))]
        present = [any(one[place][2] for one in described) for place in range(len(self.fields))]
        return ShardIndex(
            names=np.array([name for name, _ in rows], dtype=np.bytes_),
            offsets=np.array([member.offset for _, _, member, _ in found], dtype=np.int64),
            heads=np.array([member.head for _, _, member, _ in found], dtype=np.int32),
            sizes=np.array([member.size for _, _, member, _ in found], dtype=np.int64),
            checks=np.array([check for _, _, _, check in found], dtype=np.uint64),
            labels=np.array([self.labels.get(key, (-1,))[0] for _, key in rows], dtype=np.int32),
            classes=np.array(list(self.classes), dtype=np.bytes_),
            values=np.array(values, dtype=np.bytes_).reshape(len(rows), len(self.fields)),
            texts=np.array(texts, dtype=np.bool_),
            present=np.array(present, dtype=np.bool_),
            ignored=self.ignored,
            members=members,
            damage=damage,
        )


def _name_problem(name: bytes, stem: bytes, dot: bytes) -> str:
    if name.startswith(b"/") or b".." in name.split(b"/"):
        return "with a path that leads out of the shard"
    if len(name) > MAX_NAME or b"\0" in name:
        return f"with a name of more than {MAX_NAME:,} bytes or with NUL in it"
    if not stem:
        return "hidden"
    return "" if dot else "without an extension"


def _kept_name(real: bytes, fields: tuple[str, ...]) -> str:
    asked = json.dumps(fields).encode() if fields else b""
    return hashlib.sha256(real + b"\0" + asked).hexdigest()[:32]


def _about(real: bytes, state: ShardState, kind: FileKind, fields: tuple[str, ...]) -> dict[str, Any]:
    """What must be the same for a kept index to count."""
    return {
        "version": VERSION,
        "path": os.fsdecode(real),
        "file": list(state.identity),
        "extensions": [os.fsdecode(extension) for extension in sorted(kind.extensions)],
        "fields": list(fields),
    }


def _load(name: str, about: dict[str, Any]) -> ShardIndex | None:
    """The kept index; None where there is none, or it is of another file, not whole, or no file of ours."""
    content = INDEXES.read(name)
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content.data), allow_pickle=False) as arrays:
            columns = {name: arrays[name] for name in COLUMNS}
            stored = json.loads(arrays["about"].tobytes())
        if stored["about"] != about:
            return None
        ignored = Ignored(Counter(stored["ignored"]["counts"]), stored["ignored"]["names"])
        return ShardIndex(**columns, ignored=ignored, members=stored["members"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def _keep(name: str, about: dict[str, Any], index: ShardIndex) -> None:
    """Keep `index` under `name`. Raises OSError."""
    ignored = {"counts": index.ignored.counts, "names": index.ignored.names}
    text = json.dumps({"about": about, "ignored": ignored, "members": index.members})
    content = io.BytesIO()
    columns: dict[str, Any] = {name: getattr(index, name) for name in COLUMNS}
    np.savez_compressed(content, about=np.frombuffer(text.encode("ascii"), np.uint8), **columns)
    INDEXES.write(name, content.getbuffer())
