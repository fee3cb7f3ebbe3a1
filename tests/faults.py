"""Let any one call fail by which a run changes the files of a folder; all the others are real."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CALLS = ("open", "pwrite", "ftruncate", "posix_fallocate", "fdatasync", "fsync", "replace", "unlink")
ONCE, LASTING, SHORT = "once", "lasting", "short"


@dataclass(frozen=True)
class Fault:
    """call: which of the run's calls fails, from 0 · code: its errno.

    mode: that call alone (ONCE), it and every later one of its kind, as on a file system that has become read-only
    (LASTING), or, of a pwrite, its second half and every later pwrite, as on a disk that is full (SHORT).
    """

    call: int
    code: int
    mode: str

    def __str__(self) -> str:
        return f"{os.strerror(self.code)}, {self.mode}, in call {self.call}"


class Faults:
    """Stands around the functions of `os` that concern one folder, from `install` on.

    calls: what was called, in order · synced: the bytes of each file whenever a sync of it had succeeded.
    """

    def __init__(self, folder: Path, fault: Fault | None = None) -> None:
        self.calls: list[str] = []
        self.synced: list[bytes] = []
        self._folder, self._fault = folder, fault
        self._failing = ""
        self._opened: dict[int, os.stat_result] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in CALLS:
            patch.setattr(os, name, self._around(name, getattr(os, name)))

    def _around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *others: Any, **named: Any) -> Any:
            if not self._concerns(first):
                return real(first, *others, **named)
            self.calls.append(name)
            fault = self._fault
            if fault is not None and name == self._failing:
                raise OSError(fault.code, os.strerror(fault.code), *self._names(first))
            if fault is not None and len(self.calls) == fault.call + 1:
                if fault.mode != ONCE:
                    self._failing = name
                if fault.mode == SHORT:
                    data, offset = others
                    return real(first, data[: len(data) // 2], offset)
                raise OSError(fault.code, os.strerror(fault.code), *self._names(first))
            result = real(first, *others, **named)
            if name == "open":
                self._opened[result] = os.fstat(result)
            elif name in ("fdatasync", "fsync"):
                self.synced += [path.read_bytes() for path in self._files() if _is(first, path.lstat())]
            return result

        return call

    def _names(self, first: Any) -> list[str]:
        """As the system does: an error names a path, but no descriptor."""
        return [] if isinstance(first, int) else [os.fsdecode(first)]

    def _files(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.is_file()]

    def _concerns(self, first: Any) -> bool:
        if not isinstance(first, int):
            path = os.fsdecode(first)
            return self._folder in (Path(path), Path(path).parent)
        return any(_is(first, path.lstat()) for path in (self._folder, *self._files()))

    def close_left_open(self) -> list[str]:
        """What the run has opened and not closed: a lock that is still held, or a file nobody can free."""
        left = [descriptor for descriptor, status in self._opened.items() if _is(descriptor, status)]
        names = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in left]
        for descriptor in left:
            os.close(descriptor)
        return names


def _is(descriptor: int, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), status)
    except OSError:
        return False
