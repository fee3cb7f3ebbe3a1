"""Traversing a folder tree: which files below it are samples, and under which ids."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from operator import itemgetter

from precompute.sources.base import FileKind, ascii_name
from precompute.sources.columns import BLOCK_FILES, FileList
from precompute.sources.files import mtime_ns
from precompute.sources.labels import Tops, tops_of

Identity = tuple[int, int]  # device and inode

DOT = ord(".")
NAMES_KEPT = 5
STOP_ENTRIES = 512  # after so many entries of one folder `stop` is asked again; each may be a file to look into


@dataclass
class Ignored:
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


PSEUDO_FILE_SYSTEMS = {
    *("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "selinuxfs", "configfs", "pstore"),
    *("bpf", "devpts", "mqueue", "efivarfs", "fusectl", "binfmt_misc", "nsfs", "rpc_pipefs"),
}
"""They hold no files but views of the kernel, some of them without an end: /proc/self/root is the whole disk again."""


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
class Found:
    """The results of a traversal.

    tops: the two folder levels above the files of each place, by its number · entered: inodes of folders by device ·
    links: (id, path) of links to folders, a heap · pseudo: see `pseudo_file_systems`.
    """

    kind: FileKind
    files: FileList = field(default_factory=FileList)
    tops: dict[Tops, int] = field(default_factory=dict)
    unread: list[bytes] = field(default_factory=list)
    ignored: Ignored = field(default_factory=Ignored)
    entered: dict[int, set[int]] = field(default_factory=dict)
    links: list[tuple[bytes, bytes]] = field(default_factory=list)
    pseudo: dict[int, str] = field(default_factory=pseudo_file_systems)

    def enter(self, prefix: bytes, identity: Identity, again: str) -> bool:
        """Whether to enter this folder; why not is noted, under `again` where it was entered before."""
        device, inode = identity
        if (kind := self.pseudo.get(device)) is not None:
            self.ignored.add(f"pseudo file systems ({kind})", prefix[:-1])
            return False
        inodes = self.entered.setdefault(device, set())
        if inode in inodes:
            self.ignored.add(again, prefix[:-1])
            return False
        inodes.add(inode)
        return True


def collect(root: bytes, found: Found, check: Callable[[], None]) -> None:
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
            found.ignored.add(_why_ignored(error), prefix[:-1])
            continue
        _walk_real(path, prefix, identity, found, check, again="links to folders already listed")


def _walk_real(
    top: bytes,
    top_prefix: bytes,
    top_identity: Identity,
    found: Found,
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
            found.ignored.add(_why_ignored(error), prefix[:-1])
            found.unread.append(prefix)
        found.files.settle(place)
        inside.sort(key=itemgetter(1), reverse=True)
        todo += inside


def _enter(
    folder: bytes, prefix: bytes, place: int, found: Found, check: Callable[[], None]
) -> Iterator[tuple[bytes, bytes, Identity]]:
    """Put the files of one folder where they belong; give path, id and identity of each real folder in it.

    This loop runs once for every file there is, and most of a rerun's time is spent in it.
    """
    files, ignored = found.files, found.ignored
    kind = found.kind
    is_file, known = stat.S_ISREG, kind.extensions
    names, add_name, add_size, add_mtime = files.names, files.names.append, files.sizes.append, files.mtimes.append
    with os.scandir(folder) as entries:
        check()
        while some := list(islice(entries, STOP_ENTRIES)):
            for entry in some:
                name = entry.name
                if name[0] == DOT:
                    ignored.add("hidden", prefix + name)
                    continue
                try:
                    status = entry.stat()
                    if is_file(status.st_mode):
                        if name[-4:] in known or _extension(name) in known or _sniff(entry.path, kind):
                            add_name(prefix + name)
                            add_size(status.st_size)
                            try:
                                add_mtime(status.st_mtime_ns)
                            except OverflowError:
                                add_mtime(mtime_ns(status))
                            if len(names) == BLOCK_FILES:
                                files.settle(place)
                        else:
                            ignored.add(f"not {kind.plural}", prefix + name)
                    elif not stat.S_ISDIR(status.st_mode):
                        ignored.add("neither file nor folder", prefix + name)
                    elif entry.is_symlink():
                        heappush(found.links, (prefix + name + b"/", entry.path))
                    else:
                        yield entry.path, prefix + name, _identity(status)
                except OSError as error:
                    ignored.add(_why_ignored(error), prefix + name)
            check()


def _why_ignored(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "broken links"
    return "not readable" if isinstance(error, PermissionError) else f"not readable ({error.strerror})"


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _extension(name: bytes) -> bytes:
    return name[name.rfind(b".") :].lower()


def _sniff(path: bytes, kind: FileKind) -> bool:
    if not kind.head_bytes:
        return False
    # Not blocking: the entry was a file a moment ago, but may be a FIFO by now.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return kind.recognises(os.read(descriptor, kind.head_bytes))
    finally:
        os.close(descriptor)
