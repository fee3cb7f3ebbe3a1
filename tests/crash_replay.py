"""Every state in which a crash could leave the files of one run: record what the run does, then replay it truncated.

`Recorder` stands around the functions of `os` that change files, calls each through, and after each compares its own
idea of the folder with the real one, byte by byte: what it does not know of cannot have happened. `kills` is what a
process killed anywhere leaves behind, `power_cuts` what a disk may hold when the current goes.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("fill", "write", "truncate", "reserve")  # of bytes; others are of names
ASIDE = ".lock"  # a file that holds nothing
SECTOR = 512
ALL_SUBSETS = 6  # up to so many unsynced writes every subset of them is tried
SAMPLES = 20  # beyond that so many random ones, besides those in which one write alone is lost, or alone is kept


@dataclass(frozen=True)
class Event:
    """One change. kind: create, fill (all bytes at once), write, truncate, reserve, sync, rename, unlink, sync_folder.

    file: a number for each file that ever had a name, because names move · name, target: within the folder.
    """

    kind: str
    file: int = -1
    name: str = ""
    target: str = ""
    offset: int = 0
    data: bytes = b""


@dataclass
class Disk:
    """A folder: names, and the bytes of the files behind them."""

    names: dict[str, int] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)

    def after(self, *events: Event) -> Disk:
        """A copy on which these have happened."""
        disk = Disk(dict(self.names), dict(self.files))
        for event in events:
            disk.apply(event)
        return disk

    def apply(self, event: Event) -> None:
        """An event whose file or name is not there (its creation was lost) changes nothing."""
        if event.kind in CHANGES:
            old, end = self.files[event.file], event.offset + len(event.data)
            self.files[event.file] = {
                "fill": event.data,
                "write": old[: event.offset].ljust(event.offset, b"\0") + event.data + old[end:],
                "truncate": old[: event.offset].ljust(event.offset, b"\0"),
                "reserve": old.ljust(event.offset, b"\0"),
            }[event.kind]
        elif event.kind == "create":
            self.names[event.name] = event.file
            self.files.setdefault(event.file, b"")
        elif event.kind == "rename" and event.name in self.names:
            self.names[event.target] = self.names.pop(event.name)
        elif event.kind == "unlink":
            self.names.pop(event.name, None)

    def contents(self) -> dict[str, bytes]:
        return {name: self.files[file] for name, file in self.names.items()}


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Recorder:
    """Records what this process does to the files of one folder, from `install` on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        before = read_folder(folder)
        self.first = Disk(dict(zip(before, range(len(before)), strict=True)), dict(enumerate(before.values())))
        self._numbers = itertools.count(len(before))
        self._now = self.first.after()
        self._laid_out: set[int] = set()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        notes: dict[str, Callable[..., list[Event]]] = {
            "open": self._open,
            "pwrite": lambda done, file, data, offset: self._change(file, "write", offset, bytes(data[:done])),
            "ftruncate": lambda _, file, size: self._change(file, "truncate", size),
            "posix_fallocate": lambda _, file, start, size: self._change(file, "reserve", start + size),
            "fdatasync": lambda _, file: self._change(file, "sync"),
            "fsync": self._fsync,
            "replace": lambda _, source, target: self._move("rename", source, target),
            "unlink": lambda _, path: self._move("unlink", path),
        }
        for name, note in notes.items():
            patch.setattr(os, name, self._around(getattr(os, name), note))

    def _around(self, real: Callable[..., Any], note: Callable[..., list[Event]]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            events = note(result, *arguments)
            self._now = self._now.after(*events)
            self.events += events
            assert not events or self._now.contents() == read_folder(self.folder), f"unseen change before {events}"
            return result

        return call

    def _file(self, descriptor: int) -> tuple[int, list[Event]]:
        """The number of an open file, -1 outside the folder; what HDF5 has created is told when it is first seen."""
        for path in self.folder.iterdir():
            if os.path.samestat(path.lstat(), os.fstat(descriptor)):
                if path.name in self._now.names:
                    return self._now.names[path.name], []
                number = next(self._numbers)
                return number, [Event("create", number, path.name), Event("fill", number, data=path.read_bytes())]
        return -1, []

    def _change(self, descriptor: int, kind: str, offset: int = 0, data: bytes = b"") -> list[Event]:
        file, events = self._file(descriptor)
        return [*events, Event(kind, file, offset=offset, data=data)] if file >= 0 else []

    def _move(self, kind: str, path: Any, target: str = "") -> list[Event]:
        folder, name = os.path.split(os.fsdecode(path))
        return [Event(kind, name=name, target=os.path.basename(target))] if folder == str(self.folder) else []

    def _open(self, result: int, path: Any, flags: int, *mode: int) -> list[Event]:
        folder, name = os.path.split(os.fsdecode(path))
        new = flags & os.O_CREAT and folder == str(self.folder) and name not in self._now.names
        return [Event("create", next(self._numbers), name)] if new else []

    def _fsync(self, result: None, descriptor: int) -> list[Event]:
        """The fsync that ends the layout of a file brings all its bytes; from then on only pwrite may change them."""
        if os.path.samestat(os.fstat(descriptor), os.stat(self.folder)):
            return [Event("sync_folder")]
        file, events = self._file(descriptor)
        names = [name for name, number in self._now.names.items() if number == file]
        if names:
            assert names[0].endswith(".new") and file not in self._laid_out, "a file is laid out once"
            self._laid_out.add(file)
            events += [Event("fill", file, data=(self.folder / names[0]).read_bytes()), Event("sync", file)]
        return events


@dataclass(frozen=True)
class Point:
    """What lies in the folder after a crash once `done` events had happened."""

    done: int
    what: str
    contents: dict[str, bytes]


def kills(first: Disk, events: list[Event]) -> Iterator[Point]:
    """After each event, and within each write, which is then truncated."""
    disk = first.after()
    for done, event in enumerate(events):
        yield Point(done, f"killed before {event.kind}", disk.contents())
        for part in tears(event, both_ends=False):
            yield Point(done, f"killed within {event.kind}, {len(part.data)} bytes", disk.after(part).contents())
        disk.apply(event)
    yield Point(len(events), "killed at the end", disk.contents())


def tears(event: Event, *, both_ends: bool = True) -> list[Event]:
    """What may come of a write that is cut at a sector of the disk: its first part, or else its last.

    All boundaries are tried where there are at most 8, else 8 of them, evenly spread. A write within one sector is
    cut in its middle, which is worse than disks promise. What HDF5 writes is half there, or nothing but zeros.
    """
    data, start = event.data, event.offset
    if event.kind == "fill":
        return [replace(event, data=data[: len(data) // 2]), replace(event, data=bytes(len(data)))]
    if event.kind != "write" or len(data) < 2:
        return []
    places = list(range(SECTOR - start % SECTOR, len(data), SECTOR)) or [len(data) // 2]
    places = places if len(places) <= 8 else [places[number * (len(places) - 1) // 7] for number in range(8)]
    parts = [replace(event, data=data[:place]) for place in places]
    return parts + [replace(event, data=data[p:], offset=start + p) for p in places] if both_ends else parts


def power_cuts(first: Disk, events: list[Event], chance: random.Random, *, share: float = 1.0) -> Iterator[Point]:
    """Of what no sync has covered, any part may be there and any other may not, whatever came first.

    Writes that are there are applied in their order: where two overlap, the page cache holds the later one, and the
    earlier one is seen where the later one is lost; so subsets stand for every order. A file's sync covers its bytes,
    the folder's sync its names. Each subset comes whole and with one lost write torn, under every subset of the names'
    changes, but the lock is left as it was: kills show that it does not matter. `share`: of the run, tried.
    """
    now, durable = first.after(), first.after()
    aside = {event.file for event in events if event.kind == "create" and event.name.endswith(ASIDE)}
    writes, moves = list[Event](), list[Event]()
    for done, event in enumerate([*events, None]):
        if chance.random() < share:
            names = _names_left(durable.names, moves)
            for files in _bytes_left(durable.files, writes, chance):
                yield from (Point(done, "power cut", Disk(some, files).contents()) for some in names)
        if event is None:
            return
        now.apply(event)
        if event.kind == "sync":
            durable.files[event.file] = now.files[event.file]
            writes = [write for write in writes if write.file != event.file]
        elif event.kind == "sync_folder":
            durable.names, moves = dict(now.names), []
        elif event.file in aside or event.name.endswith(ASIDE):
            durable.apply(event)
        elif event.kind in CHANGES:
            writes.append(event)
        else:
            moves.append(event)
            durable.files.setdefault(event.file, b"")


def _names_left(names: dict[str, int], moves: list[Event]) -> list[dict[str, int]]:
    subsets = itertools.product((False, True), repeat=len(moves))
    found = [Disk(names).after(*itertools.compress(moves, keep)).names for keep in subsets]
    return [some for place, some in enumerate(found) if some not in found[:place]]


def _bytes_left(files: dict[int, bytes], writes: list[Event], chance: random.Random) -> Iterator[dict[int, bytes]]:
    for keep in _subsets(len(writes), chance):
        yield Disk(files=files).after(*itertools.compress(writes, keep)).files
        if cut := [place for place, there in enumerate(keep) if not there and tears(writes[place])]:
            torn = chance.choice(cut)
            left = [*writes[:torn], chance.choice(tears(writes[torn])), *writes[torn + 1 :]]
            there = [kept or place == torn for place, kept in enumerate(keep)]
            yield Disk(files=files).after(*itertools.compress(left, there)).files


def _subsets(size: int, chance: random.Random) -> Iterator[tuple[bool, ...]]:
    if size <= ALL_SUBSETS:
        yield from itertools.product((False, True), repeat=size)
        return
    for some in [(), *((place,) for place in range(size))]:
        yield tuple(number in some for number in range(size))
        yield tuple(number not in some for number in range(size))
    for density in (chance.random() for _ in range(SAMPLES)):
        yield tuple(chance.random() < density for _ in range(size))
