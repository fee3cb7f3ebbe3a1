"""A folder of images -> ordered samples, as columns.

Class sub-folders give labels (as in torchvision's ImageFolder: the first folder level is the class, deeper levels
belong to it). Folders named train, val or test above them give the split. A flat folder gives unlabelled samples.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from precompute.errors import SourceError, Stopped
from precompute.inputs.images.formats import EXTENSIONS, HEAD_BYTES, NAMES, looks_like_image
from precompute.sources.columns import BLOCK_FILES, FileList
from precompute.sources.labels import Tops, label_folders, tops_of

Identity = tuple[int, int]  # device and inode

DOT = ord(".")
NAMES_KEPT = 5
STOP_ENTRIES = 512  # after so many entries of one folder `stop` is asked again; each may be a file to look into
EARLIEST, LATEST = -(2**63), 2**63 - 1  # what int64 holds of nanoseconds since 1970: years 1677 to 2262

PSEUDO_FILE_SYSTEMS = {
    *("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "selinuxfs", "configfs", "pstore"),
    *("bpf", "devpts", "mqueue", "efivarfs", "fusectl", "binfmt_misc", "nsfs", "rpc_pipefs"),
}
"""They hold no files but views of the kernel, some of them without an end: /proc/self/root is the whole disk again."""


@dataclass
class Passed:
    """Entries that are no samples: how many of each kind, and the names of the first few."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: bytes) -> None:
        self.counts[kind] += 1
        kept = self.names.setdefault(kind, [])
        kept.append(os.fsdecode(name))
        kept.sort()  # the first by name, so that the message does not depend on the file system's order
        del kept[NAMES_KEPT:]

    def lines(self) -> list[str]:
        """Such as `2 hidden: train/.DS_Store, val/.DS_Store`."""
        return [
            f"{count} {kind}: {', '.join(map(ascii_name, self.names[kind]))}{', ...' if count > NAMES_KEPT else ''}"
            for kind, count in sorted(self.counts.items())
        ]


@dataclass(frozen=True)
class Listing:
    """The samples of a source, one entry a row, ordered by id.

    ids: (N,) fixed-length bytes, POSIX paths relative to `root` · sizes: (N,) int64 bytes · mtimes: (N,) int64 ns ·
    labels: (N,) int32 index into `classes`, -1 for none · splits: (N,) uint8, 0 none, 1 train, 2 val, 3 test ·
    passed: what was in the folder and is not a sample · notes: how the folder was understood where that may surprise ·
    unread: ids of the folders that could not be listed, each ending with `/`.
    """

    root: bytes
    ids: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]
    labels: NDArray[np.int32]
    splits: NDArray[np.uint8]
    classes: tuple[bytes, ...]
    passed: Passed
    notes: tuple[str, ...]
    unread: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, row: int) -> bytes:
        """Path of the file behind `row`."""
        return os.path.join(self.root, bytes(self.ids[row])) if self.ids[row] else self.root


def ascii_name(name: str) -> str:
    """`name` for a terminal: control characters, text-direction marks and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def mtime_ns(status: os.stat_result) -> int:
    """Modification time in ns since 1970; the nearest that int64 holds where it lies before 1677 or after 2262."""
    return min(max(status.st_mtime_ns, EARLIEST), LATEST)


def list_folder(
    root: str | os.PathLike[str], *, limit: int | None = None, stop: Callable[[], int] | None = None
) -> Listing:
    """List the images below `root`, or the one image that `root` is; the first `limit` of them by id.

    Each folder is entered once: by its path without links where it has one below `root`, else by the first link to it
    in the order of ids. A link to a file is a sample of its own, as in torchvision. What is neither a file nor a folder
    is never opened, and pseudo file systems such as /proc are not entered. Only files without an image's extension are
    looked into.
    `stop()` is asked in each folder and every STOP_ENTRIES entries; a signal's number ends the listing.
    Raises SourceError where nothing is found or `root` lies on a pseudo file system, and Stopped.
    """
    base = os.fsencode(root)
    shown = ascii_name(os.fsdecode(base))
    found = _Found()
    try:
        status = os.stat(base)
        if (kind := found.pseudo.get(status.st_dev)) is not None:
            raise SourceError(
                f"{shown} lies on a pseudo file system ({kind}), which holds no images.",
                hint="Name a folder of images.",
            )
        if stat.S_ISDIR(status.st_mode):
            _walk(base, found, _asked_to_stop(shown, found, stop))
        elif stat.S_ISREG(status.st_mode):
            found.files.names.append(b"")
            found.files.sizes.append(status.st_size)
            found.files.mtimes.append(mtime_ns(status))
            found.files.settle(found.tops.setdefault((), 0))
        else:
            raise SourceError(f"{shown} is neither a folder nor an image file.", hint="Name a folder of images.")
    except FileNotFoundError as error:
        raise SourceError(f"{shown} does not exist.", hint="Check the path for a typing error.") from error
    except OSError as error:
        raise SourceError(
            f"{shown} cannot be read: {error.strerror}.", hint=f"Check its permissions: ls -ld {shown}"
        ) from error
    if not found.files:
        about = "; ".join(found.passed.lines())
        raise SourceError(
            f"{shown} holds no images{f' ({about})' if about else ' (it is empty)'}.",
            hint=f"Name a folder with {NAMES} files, in sub-folders of any depth.",
        )
    return _listing(base, found, limit)


def pseudo_file_systems() -> dict[int, str]:
    """Device number -> type of each of PSEUDO_FILE_SYSTEMS that is mounted; empty where there is no mountinfo."""
    found = {}
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                mount, _, rest = line.partition(" - ")
                major, minor = mount.split(maxsplit=3)[2].split(":")
                kind = rest.split(maxsplit=1)[0]
                if kind in PSEUDO_FILE_SYSTEMS:
                    found[os.makedev(int(major), int(minor))] = kind
    except FileNotFoundError:
        pass  # not Linux
    return found


@dataclass
class _Found:
    """What a walk has met.

    tops: the two folder levels above the files of each place, by its number · entered: inodes of folders by device ·
    links: (id, path) of links to folders, a heap · pseudo: see `pseudo_file_systems`.
    """

    files: FileList = field(default_factory=FileList)
    tops: dict[Tops, int] = field(default_factory=dict)
    unread: list[bytes] = field(default_factory=list)
    passed: Passed = field(default_factory=Passed)
    entered: dict[int, set[int]] = field(default_factory=dict)
    links: list[tuple[bytes, bytes]] = field(default_factory=list)
    pseudo: dict[int, str] = field(default_factory=pseudo_file_systems)

    def enter(self, prefix: bytes, identity: Identity, again: str) -> bool:
        """Whether to enter this folder; why not is noted, under `again` where it was entered before."""
        device, inode = identity
        if (kind := self.pseudo.get(device)) is not None:
            self.passed.add(f"pseudo file systems ({kind})", prefix[:-1])
            return False
        inodes = self.entered.setdefault(device, set())
        if inode in inodes:
            self.passed.add(again, prefix[:-1])
            return False
        inodes.add(inode)
        return True


def _asked_to_stop(shown: str, found: _Found, stop: Callable[[], int] | None) -> Callable[[], None]:
    """A function that raises Stopped once `stop` gives a signal's number."""

    def check() -> None:
        if stop is not None and (signum := stop()):
            raise Stopped(
                f"Stopped while {shown} was being listed, with {len(found.files):,} images found.",
                signum=signum,
                hint="Nothing was computed or written yet. Run the same command again.",
            )

    return check


def _walk(root: bytes, found: _Found, check: Callable[[], None]) -> None:
    """Collect what is below `root`: real folders first, then what links lead to, in the order of the links' ids.

    So what is found, and under which names, does not depend on the order in which the file system lists folders.
    """
    _walk_real(root, b"", _identity(os.stat(root)), found, check)
    while found.links:
        check()
        prefix, path = heappop(found.links)
        try:
            identity = _identity(os.stat(path))
        except OSError as error:  # it was a folder when its link was met
            found.passed.add(_why_passed(error), prefix[:-1])
            continue
        _walk_real(path, prefix, identity, found, check, again="links to folders already listed")


def _walk_real(
    top: bytes,
    top_prefix: bytes,
    top_identity: Identity,
    found: _Found,
    check: Callable[[], None],
    *,
    again: str = "folders already listed",
) -> None:
    """Collect what is below `top`, links to folders aside. A stack, not a recursion: they may be a thousand deep.

    Folders are entered in the order of their ids, so that little is left to sort.
    """
    todo = [(top, top_prefix, top_identity)]
    while todo:
        folder, prefix, identity = todo.pop()
        if not found.enter(prefix, identity, again if prefix == top_prefix else "folders already listed"):
            continue
        inside = []
        place = found.tops.setdefault(tops_of(prefix), len(found.tops))
        try:
            for path, name, its_own in _enter(folder, prefix, place, found, check):
                inside.append((path, name + b"/", its_own))
        except OSError as error:
            if not prefix:
                raise
            found.passed.add(_why_passed(error), prefix[:-1])
            found.unread.append(prefix)
        found.files.settle(place)
        inside.sort(key=itemgetter(1), reverse=True)
        todo += inside


def _enter(
    folder: bytes, prefix: bytes, place: int, found: _Found, check: Callable[[], None]
) -> Iterator[tuple[bytes, bytes, Identity]]:
    """Put the files of one folder where they belong; give path, id and identity of each real folder in it.

    This loop runs once for every file there is, and most of a rerun's time is spent in it.
    """
    files, passed = found.files, found.passed
    is_file, known = stat.S_ISREG, EXTENSIONS
    names, add_name, add_size, add_mtime = files.names, files.names.append, files.sizes.append, files.mtimes.append
    with os.scandir(folder) as entries:
        check()
        while some := list(islice(entries, STOP_ENTRIES)):
            for entry in some:
                name = entry.name
                if name[0] == DOT:
                    passed.add("hidden", prefix + name)
                    continue
                try:
                    status = entry.stat()
                    if is_file(status.st_mode):
                        if name[-4:] in known or _extension(name) in known or _sniff(entry.path):
                            add_name(prefix + name)
                            add_size(status.st_size)
                            try:
                                add_mtime(status.st_mtime_ns)
                            except OverflowError:
                                add_mtime(mtime_ns(status))
                            if len(names) == BLOCK_FILES:
                                files.settle(place)
                        else:
                            passed.add("not images", prefix + name)
                    elif not stat.S_ISDIR(status.st_mode):
                        passed.add("neither file nor folder", prefix + name)
                    elif entry.is_symlink():
                        heappush(found.links, (prefix + name + b"/", entry.path))
                    else:
                        yield entry.path, prefix + name, _identity(status)
                except OSError as error:
                    passed.add(_why_passed(error), prefix + name)
            check()


def _why_passed(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "broken links"
    return "not readable" if isinstance(error, PermissionError) else f"not readable ({error.strerror})"


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _extension(name: bytes) -> bytes:
    return name[name.rfind(b".") :].lower()


def _sniff(path: bytes) -> bool:
    # Not blocking: the entry was a file a moment ago, but may be a FIFO by now.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return looks_like_image(os.read(descriptor, HEAD_BYTES))
    finally:
        os.close(descriptor)


def _listing(root: bytes, found: _Found, limit: int | None) -> Listing:
    """Columns and labels. The limit cuts columns; what a folder's name means is decided by the whole source."""
    ids, sizes, mtimes, places = found.files.columns()
    tops = dict(enumerate(found.tops))
    holding = {place: tops[place] for place in np.flatnonzero(np.bincount(places)).tolist()}
    if limit is not None:
        ids, sizes, mtimes, places = ids[:limit], sizes[:limit], mtimes[:limit], places[:limit]
    known = label_folders(holding, np.flatnonzero(np.bincount(places)).tolist())
    notes = []
    if known.mixed:
        names = ", ".join(ascii_name(os.fsdecode(name)) for name in known.mixed)
        notes.append(f"{names}: taken as a class, not as a split, since other folders or images stand beside it")
    labels = np.array([known.label.get(place, -1) for place in tops], dtype=np.int32)[places]
    if known.classes and (unlabelled := int((labels < 0).sum())):
        notes.append(f"{unlabelled} images lie outside the class folders and have no label")
    return Listing(
        root=root,
        ids=ids,
        sizes=sizes,
        mtimes=mtimes,
        labels=labels,
        splits=np.array([known.split.get(place, 0) for place in tops], dtype=np.uint8)[places],
        classes=known.classes,
        passed=found.passed,
        notes=tuple(notes),
        unread=tuple(found.unread),
    )
