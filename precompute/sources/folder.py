"""A folder of files -> ordered samples, as columns.

Class sub-folders give labels (as in torchvision's ImageFolder: the first folder level is the class, deeper levels
belong to it). Folders named train, val or test above them give the split. A flat folder gives unlabelled samples.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import numpy as np

from precompute.errors import SourceError
from precompute.sources.base import FileKind, Reading, Table, ascii_name, check_stop
from precompute.sources.files import FilesSource, mtime_ns
from precompute.sources.labels import label_folders
from precompute.sources.tree import Found, Ignored, collect


class FolderSource(FilesSource):
    """The files of a folder, or one file alone.

    root: path of the folder or file · table: ids are POSIX paths relative to `root`, "" for a file alone.
    """

    def __init__(
        self,
        root: bytes,
        table: Table,
        *,
        kind: FileKind | None = None,
        gaps: tuple[bytes, ...] = (),
        notes: tuple[str, ...] = (),
        ignored: Ignored | None = None,
    ) -> None:
        super().__init__(root, table)
        self.name = ascii_name(os.fsdecode(root))
        self.gaps, self.notes = gaps, notes
        self.ignored_entries = ignored or Ignored()
        self.ignored = tuple(self.ignored_entries.lines())
        self._kind = kind

    @property
    def origin(self) -> str:
        return os.fsdecode(os.path.abspath(self.root))

    def path(self, row: int) -> bytes:
        identity = bytes(self.table.ids[row])
        return os.path.join(self.root, identity) if identity else self.root

    def reads(self, path: str) -> bool:
        name = os.fsencode(os.path.realpath(path))
        inside = name.startswith(os.path.join(os.path.realpath(self.root), b""))
        named_so = self._kind is not None and os.path.splitext(name)[1].lower() in self._kind.extensions
        return (inside and named_so) or super().reads(path)

    def id_of(self, row: int) -> str:
        return super().id_of(row) or os.path.basename(os.fsdecode(self.root))


def list_folder(
    root: str | os.PathLike[str],
    kind: FileKind,
    *,
    limit: int | None = None,
    stop: Callable[[], int] | None = None,
) -> FolderSource:
    """List the files of this kind below `root`, or the one file that `root` is; the first `limit` of them by id.

    Each folder is entered once: by its path without links where it has one below `root`, else by the first link to it
    in the order of ids. A link to a file is its own sample, as in torchvision. What is neither a file nor a folder
    is never opened, and pseudo file systems such as /proc are not entered. Only files without an extension of the kind
    are looked into.
    `stop()` is asked in each folder and every STOP_ENTRIES entries; a signal's number ends the listing.
    Raises SourceError where nothing is found or `root` is on a pseudo file system, and Stopped.
    """
    base = os.fsencode(root)
    shown = ascii_name(os.fsdecode(base))
    found = Found(kind)
    try:
        status = os.stat(base)
        if (system := found.pseudo.get(status.st_dev)) is not None:
            raise SourceError(
                f"{shown} is on a pseudo file system ({system}), which holds no {kind.plural}.",
                hint=f"Name a folder of {kind.plural}.",
            )
        if stat.S_ISDIR(status.st_mode):
            collect(base, found, asked_to_stop(shown, found, stop))
        elif stat.S_ISREG(status.st_mode):
            found.files.names.append(b"")
            found.files.sizes.append(status.st_size)
            found.files.mtimes.append(mtime_ns(status))
            found.files.settle(found.tops.setdefault((), 0))
        else:
            what = f"{shown} is neither a folder nor {kind.single} file."
            raise SourceError(what, hint=f"Name a folder of {kind.plural}.")
    except FileNotFoundError as error:
        raise SourceError(f"{shown} does not exist.", hint="Check the path for a typing error.") from error
    except OSError as error:
        raise SourceError(
            f"{shown} cannot be read: {error.strerror}.", hint=f"Check its permissions: ls -ld {shown}"
        ) from error
    if not found.files:
        about = "; ".join(found.ignored.lines())
        hint = f"Name a folder with {kind.formats} files, in sub-folders of any depth."
        if any(name.endswith(".parquet") for names in found.ignored.names.values() for name in names):
            hint += f" Where its Parquet files hold them: hf-dataset:{shown}"
        raise SourceError(f"{shown} holds no {kind.plural} ({about or 'it is empty'}).", hint=hint)
    return _listing(base, found, limit)


def asked_to_stop(shown: str, found: Found, stop: Callable[[], int] | None) -> Callable[[], None]:
    """A function that raises Stopped once `stop` gives a signal's number."""

    def check() -> None:
        check_stop(stop, f"{shown} was being listed, with {len(found.files):,} {found.kind.plural} found")

    return check


def _listing(root: bytes, found: Found, limit: int | None) -> FolderSource:
    table, notes = tabulated(found, limit)
    return FolderSource(
        root,
        table,
        kind=found.kind,
        gaps=tuple(found.unread),
        notes=notes,
        ignored=found.ignored,
    )


def tabulated(found: Found, limit: int | None) -> tuple[Table, tuple[str, ...]]:
    """Columns and labels of what was found, and how its folders were understood, where that may surprise.

    The limit cuts columns; what a folder's name means is decided by the whole source.
    """
    ids, sizes, mtimes, places = found.files.columns()
    tops = dict(enumerate(found.tops))
    holding = {place: tops[place] for place in np.flatnonzero(np.bincount(places)).tolist()}
    if limit is not None:
        ids, sizes, mtimes, places = ids[:limit], sizes[:limit], mtimes[:limit], places[:limit]
    known = label_folders(holding, np.flatnonzero(np.bincount(places)).tolist())
    notes = []
    if known.mixed:
        names = ", ".join(ascii_name(os.fsdecode(name)) for name in known.mixed)
        notes.append(
            f"{names}: read as a class, not as a split, because other folders or {found.kind.plural} are next to it"
        )
    labels = np.array([known.label.get(place, -1) for place in tops], dtype=np.int32)[places]
    if known.classes and (unlabelled := int((labels < 0).sum())):
        notes.append(f"{unlabelled} {found.kind.plural} are outside the class folders and have no label")
    table = Table(
        ids=ids,
        sizes=sizes,
        mtimes=mtimes,
        labels=labels,
        splits=np.array([known.split.get(place, 0) for place in tops], dtype=np.uint8)[places],
        classes=known.classes,
    )
    return table, tuple(notes)


def open_folder(
    name: str, kind: FileKind, *, reading: Reading, limit: int | None, stop: Callable[[], int] | None
) -> FolderSource:
    """See `list_folder`; nothing about a folder is left open."""
    del reading
    return list_folder(name, kind, limit=limit, stop=stop)
