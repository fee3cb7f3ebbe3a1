"""SIGINT, SIGTERM and SIGHUP end a command with one line, and exit status 130, 143 or 129.

As long as there is nothing to finish (listing, loading, proving, training), the signal raises `Interrupted` wherever
the command is. Once an extraction computes, its first signal asks it to end after the batch in progress, and SIGTERM,
which schedulers send some 30 seconds before SIGKILL, no later than `LAST`: nothing but that batch is lost.

An exception does not always arrive: a long call into a library keeps it waiting, and one raised in a destructor is
lost. So a thread watches, and ends the process where the command has not ended by itself. Or a library makes it an
error of its own, such as a ValueError of torch's that a storage has no shape: `raised` says which signal that was.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import click

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 2.0  # seconds from the signal to the end of the process
LAST = 20.0  # from SIGTERM on, for the batch in flight: Slurm and Kubernetes wait for 30, systemd for 90
ECHO = 1.0  # a signal again within this is the same: `timeout`, and batch scripts that hand Slurm's on, send it twice


class Interrupted(BaseException):  # no Exception: nothing that mends errors may take this for one
    """A signal that asked to stop, as an exception in the main thread."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """What this command has been sent. A call gives the signal that asked to stop, 0 for none: the `stop` of a run."""

    def __init__(self) -> None:
        self._received = 0
        self._since = 0.0
        self._gentle = False
        self._last = math.inf
        self.raised = 0  # the signal that raised `Interrupted`, 0 for none

    def __call__(self) -> int:
        return self._received

    def batches_begin(self, *, last: float = math.inf) -> None:
        """From now on a signal is only noted, and requested by a call; before, it raises `Interrupted`.

        last: seconds that SIGTERM leaves to the batch in progress, for a command that loses nothing else with it.
        """
        self._gentle, self._last = True, last

    def batches_end(self) -> None:
        """As before `batches_begin`."""
        self._gentle = False

    def handle(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """The signal handler. A second signal ends the process at once: nothing finished is lost by that either."""
        if self._received:
            if time.monotonic() - self._since >= ECHO:
                os._exit(128 + signum)
            return
        self._received, self._since = signum, time.monotonic()
        if not self._gentle:
            self.raised = signum
            raise Interrupted(signum)
        click.echo("Stopping after the current batch; repeat to stop at once.", err=True)

    @contextlib.contextmanager
    def interrupting(self, give_up: Callable[[int], None]) -> Iterator[None]:
        """Inside, signals are handled. `give_up(signum)` is called in a thread where `Interrupted` does not arrive."""
        # Under nohup, SIGHUP stays ignored
        before = {signum: old for signum in SIGNALS if (old := signal.getsignal(signum)) not in (signal.SIG_IGN, None)}
        for signum in before:
            signal.signal(signum, self.handle)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        over = threading.Event()
        with contextlib.suppress(RuntimeError):  # where no thread can be started, the exception has to do
            threading.Thread(target=self._watch, args=(reader, over, give_up), daemon=True).start()
        try:
            yield
        finally:
            over.set()
            for signum, old in before.items():
                signal.signal(signum, old)
            signal.set_wakeup_fd(wakeup)
            os.close(writer)  # which ends the thread

    def _watch(self, reader: int, over: threading.Event, give_up: Callable[[int], None]) -> None:
        first, since = 0, 0.0
        waits: list[float] = []
        while True:
            left = max(0.0, since + waits[0] - time.monotonic()) if waits else None
            if select.select([reader], [], [], left)[0]:
                received = os.read(reader, 1)
                if not received:
                    break
                if received[0] not in SIGNALS:
                    continue
                if not first:
                    first, since, waits = received[0], time.monotonic(), [PATIENCE, LAST]
                elif time.monotonic() - since >= ECHO and not over.is_set():
                    os._exit(128 + received[0])  # also while the main thread is deep in a library
            else:
                late = waits.pop(0) >= self._last and first == signal.SIGTERM
                if (late or not self._gentle) and not over.is_set():
                    give_up(first)
        os.close(reader)
