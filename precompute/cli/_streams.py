"""Standard streams that never end a run: what cannot be printed is dropped and remembered.

A full disk under a log, a closed terminal or a reader that went away must not end a night's work. So while a command
runs, `sys.stdout` and `sys.stderr` are `SafeStream`s, through which click, rich, csv and tracebacks all print.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO, cast

from precompute.cli._signals import Signals

SKIPPED = 3  # exit status: finished, but some images have no features
LOST = 1  # exit status: done, but the result could not be printed


def hold_descriptors() -> None:
    """Open /dev/null instead of standard descriptors that are closed.

    Else the next file to be opened, such as the cache, would be descriptor 1 or 2, and get what libraries print there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(number, True)


class SafeStream:
    """A text stream that raises nothing. `failure` is the first error of writing; `used`: something was written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.failure: Exception | None = None
        self.used = False

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:
        return getattr(self._stream, "errors", None) or "strict"

    @property
    def closed(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError(errno.EBADF, "the stream is closed")
        return self._stream.fileno()

    def reconfigure(self, **settings: Any) -> None:
        """As that of io.TextIOWrapper."""
        if self._stream is not None:
            self._stream.reconfigure(**settings)  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.used = self.used or bool(text)
        with self._remembering():
            if self._stream is None:
                raise OSError(errno.EBADF, "the stream is closed")
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        with self._remembering():
            if self._stream is not None:
                self._stream.flush()

    def settle(self) -> None:
        """Print what is still buffered; where that fails, send it to /dev/null, so that no later flush fails again."""
        self.flush()
        if self.failure is not None:
            with contextlib.suppress(OSError, ValueError):  # of a test's capture, which has no descriptor
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.fileno())
                os.close(null)

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # closed by somebody; a signal in the middle of a print
            self.failure = self.failure or error


@dataclass
class Terminal:
    """What a command prints on, and is sent signals from. The result goes to `out`, all else to `err`.

    finished: the file that the command has finished, named where the result cannot be printed ·
    for_programs: `out` takes data alone (JSON, CSV), so that no message may be in it.
    """

    out: SafeStream = field(default_factory=lambda: SafeStream(sys.stdout))
    err: SafeStream = field(default_factory=lambda: SafeStream(sys.stderr))
    finished: str | None = None
    for_programs: bool = False
    signals: Signals = field(default_factory=Signals)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, `sys.stdout` and `sys.stderr` are these streams."""
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = cast(TextIO, self.out), cast(TextIO, self.err)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before

    def complain(self, text: str) -> None:
        """A message on stderr, or on stdout where stderr fails and stdout is read by people."""
        self.err.write(f"{text}\n")
        self.err.flush()
        if self.err.failure is not None and not self.for_programs and self.out.failure is None:
            self.out.write(f"{text}\n")

    def close(self, status: int) -> int:
        """The exit status of a command that ends with `status`, once everything is printed or known to be lost."""
        self.out.flush()
        if (lost := self.out.failure) is not None:
            status = LOST if status in (0, SKIPPED) else status
            if self.finished is not None:
                self.complain(f"The result could not be printed: {reason(lost)}. {self.finished} is finished.")
            elif not isinstance(lost, BrokenPipeError):  # such as `precompute backbones | head`: nobody reads on
                self.complain(f"The result could not be printed: {reason(lost)}.")
        elif (lost := self.err.failure) is not None and not self.for_programs and not isinstance(lost, BrokenPipeError):
            self.out.write(f"Some notes or progress could not be printed on stderr: {reason(lost)}.\n")
        self.out.settle()
        self.err.settle()
        return status


def reason(error: Exception) -> str:
    """What went wrong in words, without the number of an OSError."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
