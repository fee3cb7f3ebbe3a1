"""The processes that read and decode: started, replaced where they die, and gone at the end. See `processes`."""

from __future__ import annotations

import contextlib
import selectors
import socket
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from precompute.errors import SampleError
from precompute.extraction.executors.launcher import Launcher
from precompute.extraction.executors.packing import packed_for
from precompute.extraction.executors.slots import NO_ROW, Layout, Slots
from precompute.inputs.base import Preprocess
from precompute.sources.base import Source
from precompute.system.shared_memory import SharedMemory

NEEDED = {"image": ("torchvision.transforms",)}
"""What decoding loads when it meets its first sample, by modality."""


@dataclass
class Task:
    """Rows whose inputs go into one slot. lost: those that processes died of, which are not tried any more."""

    number: int
    slot: int
    rows: list[int]
    lost: dict[int, SampleError] = field(default_factory=dict)


@dataclass
class Process:
    """One of a crew. launched: its launcher's number · tasks: that it has not finished, by number · ready: it has
    loaded all that it needs."""

    number: int
    launched: int
    connection: Connection
    tasks: dict[int, Task] = field(default_factory=dict)
    ready: bool = False


class Crew:
    """Up to `layout.workers` processes for one source and preprocessing, which outlive a run. Used from one thread at
    a time.

    Raises UsageError for a source or preprocessing that cannot be sent to another process.
    """

    def __init__(self, launcher: Launcher, layout: Layout, source: Source, preprocess: Preprocess) -> None:
        self._launcher = launcher
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

    def replace(self, process: Process) -> int | None:
        """Start another one instead of one that is no longer there, and wait for that; its exit status, see
        `Launcher.status`."""
        self.selector.unregister(process.connection)
        process.connection.close()
        status = self._launcher.status(process.launched)
        if process.ready and status is not None:
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
        self._launcher.end([process.launched for process in self.processes.values()])
        self.selector.close()
        self._memory.close()
        self._packed.memory.close()

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        connection = Connection(ours.detach())
        self.slots.mark(number, NO_ROW)
        with theirs:
            memory = self._memory.fd, self._packed.memory.fd
            launched = self._launcher.start(connection, theirs, memory, NEEDED.get(self.preprocess.modality, ()))
        process = self.processes[number] = Process(number, launched, connection)
        self.selector.register(connection, selectors.EVENT_READ, process)
        with contextlib.suppress(OSError):  # it is no longer there, which is heard
            connection.send((number, self.layout, self._packed.places))
