"""A folder of images -> ordered samples, as columns.

Class sub-folders give labels (as in torchvision's ImageFolder: the first folder level is the class, deeper levels
belong to it). Folders named train, val or test above them give the split. A flat folder gives unlabelled samples.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from precompute.errors import SourceError

SPLIT_NAMES = {
    **dict.fromkeys((b"train", b"training", b"trn"), 1),
    **dict.fromkeys((b"val", b"valid", b"validation", b"dev"), 2),
    **dict.fromkeys((b"test", b"testing", b"tst", b"eval", b"evaluation"), 3),
}
"""Folder names (in any case) that mean a split, with the split's code: 1 train, 2 val, 3 test."""

IMAGE_EXTENSIONS = frozenset(b".jpg .jpeg .jpe .jfif .png .apng .gif .bmp .dib .webp .tif .tiff .mpo".split())
"""A file with one of these is a sample whatever it holds: should it not be an image, that is worth being told."""

SNIFF_BYTES = 16
NAMES_KEPT = 5


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
    passed: what was in the folder and is not a sample · notes: how the folder was understood where that may surprise.
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

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, row: int) -> bytes:
        """Path of the file behind `row`."""
        return os.path.join(self.root, bytes(self.ids[row])) if self.ids[row] else self.root


def ascii_name(name: str) -> str:
    """`name` for a terminal: control characters, text-direction marks and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def looks_like_image(head: bytes) -> bool:
    """Whether the first SNIFF_BYTES of a file are those of JPEG, PNG, GIF, BMP, WebP or TIFF."""
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    )


def list_folder(root: str | os.PathLike[str], *, limit: int | None = None) -> Listing:
    """List the images below `root`, or the one image that `root` is; the first `limit` of them by id.

    Links to files and folders are followed once each, so loops end; what is neither a file nor a folder is never
    opened. Only files without an image's extension are looked into. Raises SourceError where nothing is found.
    """
    base = os.fsencode(root)
    shown = ascii_name(os.fsdecode(base))
    found: list[tuple[bytes, int, int]] = []
    passed = Passed()
    try:
        status = os.stat(base)
        if stat.S_ISDIR(status.st_mode):
            _walk(base, found, passed)
        elif stat.S_ISREG(status.st_mode):
            found.append((b"", status.st_size, status.st_mtime_ns))
        else:
            raise SourceError(f"{shown} is neither a folder nor an image file.", hint="Name a folder of images.")
    except FileNotFoundError as error:
        raise SourceError(f"{shown} does not exist.", hint="Check the path for a typing error.") from error
    except OSError as error:
        raise SourceError(
            f"{shown} cannot be read: {error.strerror}.", hint=f"Check its permissions: ls -ld {shown}"
        ) from error
    if not found:
        about = "; ".join(passed.lines())
        raise SourceError(
            f"{shown} holds no images{f' ({about})' if about else ' (it is empty)'}.",
            hint="Name a folder with JPEG, PNG, GIF, BMP, WebP or TIFF files, in sub-folders of any depth.",
        )
    found.sort()
    return _columns(base, found, passed, limit)


def _walk(root: bytes, found: list[tuple[bytes, int, int]], passed: Passed) -> None:
    """Collect (id, size, mtime) below `root`. A stack, not a recursion: folders may be nested a thousand deep."""
    todo = [(root, b"", frozenset({_identity(os.stat(root))}))]
    while todo:
        folder, prefix, above = todo.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    status = _examine(entry, name, found, passed)
                    if status is None:
                        continue
                    if _identity(status) in above:
                        passed.add("links that lead back to a folder above", name)
                    else:
                        todo.append((entry.path, name + b"/", above | {_identity(status)}))
        except OSError as error:
            if folder == root:
                raise
            passed.add(_why_passed(error), prefix[:-1])


def _examine(
    entry: os.DirEntry[bytes], name: bytes, found: list[tuple[bytes, int, int]], passed: Passed
) -> os.stat_result | None:
    """Put a file where it belongs; hand back the status of a folder."""
    if entry.name.startswith(b"."):
        passed.add("hidden", name)
        return None
    try:
        status = entry.stat()
        if stat.S_ISDIR(status.st_mode):
            return status
        if not stat.S_ISREG(status.st_mode):
            passed.add("neither file nor folder", name)
        elif _extension(entry.name) in IMAGE_EXTENSIONS or _sniff(entry.path):
            found.append((name, status.st_size, status.st_mtime_ns))
        else:
            passed.add("not images", name)
    except OSError as error:
        passed.add(_why_passed(error), name)
    return None


def _why_passed(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "broken links"
    return "not readable" if isinstance(error, PermissionError) else f"not readable ({error.strerror})"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _extension(name: bytes) -> bytes:
    _, dot, end = name.rpartition(b".")
    return dot + end.lower()


def _sniff(path: bytes) -> bool:
    # Not blocking: the entry was a file a moment ago, but may be a FIFO by now.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return looks_like_image(os.read(descriptor, SNIFF_BYTES))
    finally:
        os.close(descriptor)


def _columns(root: bytes, found: list[tuple[bytes, int, int]], passed: Passed, limit: int | None) -> Listing:
    # What is a split is decided by the whole folder: the first few images may all lie in a class named `test`.
    parents = [identity.split(b"/")[:-1] for identity, _, _ in found]
    tops = {folders[0] for folders in parents if folders}
    splits_on_top = bool(tops) and all(parents) and all(top.lower() in SPLIT_NAMES for top in tops)
    notes = []
    mixed = sorted(top for top in tops if top.lower() in SPLIT_NAMES)
    if mixed and not splits_on_top:
        names = ", ".join(ascii_name(os.fsdecode(top)) for top in mixed)
        notes.append(f"{names}: taken as a class, not as a split, since other folders or images stand beside it")
    found, parents = found[:limit], parents[:limit]
    if splits_on_top:
        splits = [SPLIT_NAMES[folders[0].lower()] for folders in parents]
        parents = [folders[1:] for folders in parents]
    else:
        splits = [0] * len(found)
    classes = tuple(sorted({folders[0] for folders in parents if folders}))
    index = {name: number for number, name in enumerate(classes)}
    labels = [index[folders[0]] if folders else -1 for folders in parents]
    if classes and (unlabelled := labels.count(-1)):
        notes.append(f"{unlabelled} images lie outside the class folders and have no label")
    return Listing(
        root=root,
        ids=np.array([identity for identity, _, _ in found], dtype=np.bytes_),
        sizes=np.array([size for _, size, _ in found], dtype=np.int64),
        mtimes=np.array([mtime for _, _, mtime in found], dtype=np.int64),
        labels=np.array(labels, dtype=np.int32),
        splits=np.array(splits, dtype=np.uint8),
        classes=classes,
        passed=passed,
        notes=tuple(notes),
    )
