"""The processes that read and decode: started, replaced where they die, and gone at the end. See `processes`."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from precompute.errors import SampleError
from precompute.extraction.executors.packing import packed_for
from precompute.extraction.executors.slots import NO_ROW, Layout, Slots
from precompute.inputs.base import Preprocess
from precompute.sources.base import Source
from precompute.system.shared_memory import SharedMemory

CLOSE_SECONDS = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
START = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
try:
    sys.path[:] = connection.recv()
except EOFError:
    sys.exit()
from precompute.extraction.executors.worker import main
main(connection)
"""
"""Not through multiprocessing's spawn, which would run the user's script once more in each process."""


@dataclass
class Task:
    """Rows whose inputs go into one slot. lost: those that processes died of, which are not tried any more."""

    number: int
    slot: int
    rows: list[int]
    lost: dict[int, SampleError] = field(default_factory=dict)


@dataclass
class Process:
    """One of a crew. tasks: that it has and has not finished, by number · ready: it has loaded all that it needs."""

    number: int
    popen: subprocess.Popen[bytes]
    connection: Connection
    tasks: dict[int, Task] = field(default_factory=dict)
    ready: bool = False


class Crew:
    """Up to `layout.workers` processes for one source and preprocessing, which outlive a run. Used from one thread at
    a time.

    Raises UsageError for a source or preprocessing that cannot be sent to another process.
    """

    def __init__(self, layout: Layout, source: Source, preprocess: Preprocess) -> None:
        self.layout, self.source, self.preprocess = layout, source, preprocess
        self.processes: dict[int, Process] = {}
        self._packed = packed_for(source, preprocess)
        try:
            self._memory = SharedMemory(layout.size)
        except BaseException:
            self._packed.memory.close()
            raise
        self.slots = Slots(self._memory.memory, layout)
        self.selector = selectors.DefaultSelector()
        self._closed = False

    def fits(self, layout: Layout, source: Source, preprocess: Preprocess) -> bool:
        """Whether its processes would do for these."""
        return self.source is source and self.preprocess is preprocess and self.layout.sizes == layout.sizes

    @property
    def at_rest(self) -> bool:
        """No process has anything to do."""
        return not any(process.tasks for process in self.processes.values())

    def grow(self, count: int) -> None:
        """Start processes until there are so many."""
        for number in range(min(count, self.layout.workers)):
            if number not in self.processes:
                self._start(number)

    def replace(self, process: Process) -> int:
        """Start another one in place of one that is not there any more, and wait for that; its exit status."""
        self.selector.unregister(process.connection)
        process.connection.close()
        status = process.popen.wait()
        if process.ready:
            self._start(process.number)
        else:  # nor would the next one
            del self.processes[process.number]
        return status

    def close(self) -> None:
        """End all processes, whatever they are doing, and wait for that."""
        if self._closed:
            return
        self._closed = True
        for process in self.processes.values():
            process.connection.close()  # which each of them hears, and ends
        until = time.monotonic() + CLOSE_SECONDS
        for process in self.processes.values():
            try:
                process.popen.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        self.selector.close()
        self._memory.close()
        self._packed.memory.close()

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = (theirs.fileno(), self._memory.fd, self._packed.memory.fd)
            command = [sys.executable, "-I", "-c", START, str(theirs.fileno())]
            # One thread each: torch would resize each picture with a team of as many as there are cores
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self.slots.mark(number, NO_ROW)
            with _deaf():
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    pass_fds=inherited,
                )
        process = Process(number, popen, Connection(ours.detach()))
        self.processes[number] = process
        self.selector.register(process.connection, selectors.EVENT_READ, process)
        with contextlib.suppress(OSError):  # it is not there any more, which is heard
            process.connection.send(sys.path)
            process.connection.send((number, self.layout, inherited[1], inherited[2], self._packed.places))


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A process that is started inside never gets the signals that a terminal or a scheduler sends to all: the one
    that drives the engine decides what becomes of the run, and the others hear of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
