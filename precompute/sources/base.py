"""What a source of samples is: a table of what there is, and the bytes of each row. No torch here.

A new kind of source is one file next to this one, a subclass of `Source`, and one line in `registry`.
`precompute.extract` takes any of them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precompute.errors import Stopped, UsageError


@dataclass(frozen=True)
class Table:
    """The samples of a source, one entry a row, ordered by id.

    ids: (N,) fixed-length bytes, unique, ascending as bytes · sizes, mtimes: (N,) int64, two stamps that change when
    the sample's bytes do: for files bytes and ns since 1970 · labels: (N,) int32 index into `classes`, -1 for none ·
    splits: (N,) uint8, 0 none, 1 train, 2 val, 3 test · classes: names, ascending · columns: what else the source
    knows, by name: (N,) or (N, k) fixed-length bytes, bool, integers or floats.
    """

    ids: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]
    labels: NDArray[np.int32]
    splits: NDArray[np.uint8]
    classes: tuple[bytes, ...]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Raw:
    """The bytes of one sample, and its two stamps as they were when it was read."""

    data: bytes
    size: int
    mtime: int


@dataclass(frozen=True)
class FileKind:
    """Which files are samples of one kind.

    single, plural, formats: for messages, such as "an image", "images" and "JPEG or PNG" · extensions: in lower case,
    with the dot; a file that has one is a sample whatever it holds · recognises: whether the first `head_bytes` of
    another file are those of a sample; with none the name decides alone · column: of a table that may hold samples
    themselves instead of paths, "" for none.
    """

    single: str
    plural: str
    formats: str
    extensions: frozenset[bytes]
    head_bytes: int
    recognises: Callable[[bytes], bool]
    column: str = ""


PARTS = ("path", "id", "label", "split")
"""The columns of a table. Texts in a column `text` may replace the paths."""


@dataclass(frozen=True)
class Reading:
    """How a source is read, where its kind leaves that open.

    root: the folder that paths in a table or list are relative to, by default the one that it is in · columns: the
    names of a table's columns by what they hold: "path", "text", "id", "label" and "split"; by default these words ·
    keep: names of further columns that go into the file.
    """

    root: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, root: str | os.PathLike[str] | None, columns: Mapping[str, str] | None, keep: Sequence[str] = ()
    ) -> Reading:
        """From the arguments of a function. Raises UsageError for what no column holds."""
        if strange := sorted(set(columns or {}) - {*PARTS, "text"}):
            raise UsageError(
                f"columns has names for {', '.join(map(repr, strange))}.", hint=f"It takes {', '.join(PARTS)} and text."
            )
        return cls(None if root is None else os.fspath(root), dict(columns or {}), tuple(keep))

    def given(self) -> dict[str, str]:
        """What was requested, by the names of the command's options."""
        root = {} if self.root is None else {"--root": self.root}
        keep = {"--keep-column": ", ".join(self.keep)} if self.keep else {}
        return {**root, **{f"--{part}-column": name for part, name in self.columns.items()}, **keep}


class Source(ABC):
    """Samples in a fixed order, and their bytes.

    name: for messages, without credentials · table: what there is, listed once · reading: as it was requested · gaps:
    prefixes of ids that could not be listed, and so do not count as deleted · unseen: rows that could not be looked
    at, and so do not count as changed · notes: how the source was understood, where that may surprise · ignored: lines
    on entries that are no samples · reads_at_once: the best number of concurrent reads, where each waits for a network,
    in their own threads; 0: the threads that decode also read.
    """

    name: str
    table: Table
    reading: Reading = Reading()
    gaps: tuple[bytes, ...] = ()
    unseen: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    reads_at_once: int = 0

    def __len__(self) -> int:
        return len(self.table)

    @property
    def origin(self) -> str:
        """Where the samples came from, for the record of a run, without credentials."""
        return self.name

    def order(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """`rows`, ascending, in the order in which they are read best, in parts of any size."""
        yield rows

    @abstractmethod
    def read(self, row: int) -> Raw:
        """The sample in `row`; called from several threads at once. Raises SampleError with the reason it gives."""

    def alive(self) -> bool:
        """False once the whole source has gone away, so that its samples have not vanished one by one."""
        return True

    def patient(self, waits: bool) -> None:
        """Whether reads, those in progress too, wait for a network that does not answer; at first they do."""
        del waits

    def reads(self, path: str) -> bool:
        """Whether the file at `path` is one of the samples, or would be one if it were made."""
        del path
        return False

    def label_name(self, row: int) -> str | None:
        """The class of `row`; None where it has none."""
        label = int(self.table.labels[row])
        return os.fsdecode(self.table.classes[label]) if label >= 0 else None

    def id_of(self, row: int) -> str:
        """The id of `row`, or what names the sample where that is empty."""
        return os.fsdecode(bytes(self.table.ids[row]))

    def sample_name(self, row: int) -> str:
        """The same for a terminal."""
        return ascii_name(self.id_of(row))


def check_stop(stop: Callable[[], int] | None, doing: str) -> None:
    """Raise Stopped once `stop` gives a signal's number. doing: such as "photos was being listed"."""
    if stop is not None and (signum := stop()):
        raise Stopped(
            f"Stopped while {doing}.",
            signum=signum,
            hint="Nothing was computed or written yet. Run the same command again.",
        )


def ascii_name(name: str) -> str:
    """`name` for a terminal: control characters, text-direction marks and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
