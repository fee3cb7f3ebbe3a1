"""SIGINT, SIGTERM and SIGHUP end a command with one line, and exit status 130, 143 or 129.

As long as there is nothing to finish (listing, loading, proving, training), the signal raises `Interrupted` wherever
the command is. Once an extraction computes, its first signal asks it to end after the batch in flight.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from precompute.cli._output import note

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], None]


class Interrupted(BaseException):  # no Exception: nothing that mends errors may take this for one
    """A signal that asked to stop, as an exception in the main thread."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Inside, a signal raises `Interrupted`; a second one ends the process at once."""

    def interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(signum, signal.SIG_DFL)
        raise Interrupted(signum)

    with _handling(interrupt):
        yield


class Stop:
    """Says by a call which signal asked to stop, 0 for none. `batches_begin()` makes signals wait for a batch's end."""

    def __init__(self) -> None:
        self._received = 0
        self._gentle = False

    def __call__(self) -> int:
        return self._received

    def batches_begin(self) -> None:
        """From now on a signal is only noted; before, it raises `Interrupted`."""
        self._gentle = True

    def ask(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """The signals' handler."""
        self._received = signum
        signal.signal(signum, signal.SIG_DFL)
        if not self._gentle:
            raise Interrupted(signum)
        note("Stopping after the batch in flight; once more to stop at once.")


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Give the `stop` of a run. A second signal ends the process at once (nothing finished is lost by that either)."""
    stop = Stop()
    with _handling(stop.ask):
        yield stop


@contextlib.contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    """Handle the signals that this process listens to: under nohup, SIGHUP stays ignored."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    heard = {signum: old for signum, old in before.items() if old not in (signal.SIG_IGN, None)}
    for signum in heard:
        signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, old in heard.items():
            signal.signal(signum, old)
