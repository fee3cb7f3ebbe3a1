"""Every error that precompute raises on purpose, in one tree.

PrecomputeError                 anything below; the command line prints it and exits with `exit_code`
├── UsageError                  arguments that contradict each other (exit status 2)
├── SourceError                 a folder that is missing, unreadable or holds no images
├── SampleError                  one image that cannot become a tensor, with its `reason`
├── BackboneError               unknown backbone or layer, a factory that fails, a model that cannot be cut
│   └── WeightsError            weights that are missing, of another model, or not loadable safely
├── CacheError                  anything about the feature file
│   ├── CacheFormatError        not a precompute file, truncated, damaged, or of a newer version
│   ├── CacheKeyError           a file made with other settings; carries the line-by-line difference
│   ├── CacheLockedError        another process is writing this file
│   └── DiskSpaceError          the features would not fit
├── TrainingError               labels or features that no head can be trained on
├── HeadError                   anything about a saved head
│   ├── HeadFormatError         not a head file, truncated, or damaged
│   └── HeadMismatchError       a head that was trained on other features than it is given, a checkpoint of another
│                               training
├── DeviceError                 a device or precision that this machine does not have
└── Stopped                     SIGINT, SIGTERM or SIGHUP; what was done is kept (exit status 130, 143 or 129)

Each carries `message` (what is wrong, with which file) and `hint` (what to do next).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

__all__ = [
    "BackboneError",
    "CacheError",
    "CacheFormatError",
    "CacheKeyError",
    "CacheLockedError",
    "DeviceError",
    "DiskSpaceError",
    "HeadError",
    "HeadFormatError",
    "HeadMismatchError",
    "PrecomputeError",
    "SampleError",
    "SourceError",
    "Stopped",
    "TrainingError",
    "UsageError",
    "WeightsError",
    "naming",
    "reason_of",
]


REASON_LETTERS = 200


def reason_of(error: BaseException) -> str:
    """The first line of what an error of a library says, no longer than fits into a message; else its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:REASON_LETTERS]


class PrecomputeError(Exception):
    """Base of all errors raised on purpose. `str(error)` is the message, then the hint on its own line."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, vars(self))  # by default Python would leave out the hint


def _rebuilt(kind: type[PrecomputeError], given: tuple[Any, ...], values: dict[str, Any]) -> PrecomputeError:
    """The error that another process raised."""
    error = kind.__new__(kind, *given)
    vars(error).update(values)
    return error


class UsageError(PrecomputeError):
    """Arguments that contradict each other."""

    exit_code = 2


class SourceError(PrecomputeError):
    """A source that is missing, unreadable, or holds no images."""


class SampleError(PrecomputeError):
    """One sample that cannot become a tensor.

    `reason` is the name of the sample status that records it in the cache (see cache/FORMAT.md).
    """

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class BackboneError(PrecomputeError):
    """An unknown backbone or layer, a factory that fails, or a model that cannot be cut at a layer."""


class WeightsError(BackboneError):
    """Weights that are missing, belong to another model, or cannot be loaded without unpickling code."""


class CacheError(PrecomputeError):
    """Anything about the feature file."""


class CacheFormatError(CacheError):
    """A file that is not a precompute cache, is truncated or damaged, or has a newer format version."""


class CacheKeyError(CacheError):
    """A cache made with other settings. `difference` holds one line for each setting that differs."""

    def __init__(self, message: str, *, difference: list[str], hint: str) -> None:
        super().__init__("\n".join([message, *(f"  {line}" for line in difference)]), hint=hint)
        self.difference = difference


class CacheLockedError(CacheError):
    """Another process is writing this file."""


class DiskSpaceError(CacheError):
    """The features do not fit on the disk."""


class TrainingError(PrecomputeError):
    """Labels or features that no head can be trained on."""


class HeadError(PrecomputeError):
    """Anything about a saved head."""


class HeadFormatError(HeadError):
    """A file that is not a precompute head, is truncated, or is damaged."""


class HeadMismatchError(HeadError):
    """A head that was trained on other features than it is given."""


class DeviceError(PrecomputeError):
    """A device or a precision that this machine does not have."""


class Stopped(PrecomputeError):
    """SIGINT, SIGTERM or SIGHUP arrived. Everything finished so far is kept."""

    def __init__(self, message: str, *, signum: int, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signum


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, an OSError that knows no file (of a write, a sync, a reservation) gets this one's name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise
