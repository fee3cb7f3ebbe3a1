"""The processes of one run: started, fed, replaced where they die, and gone at its end. See `processes`."""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from precompute.errors import PrecomputeError, SampleError
from precompute.extraction.executors.slots import NO_ROW, Layout, Packed, Slots
from precompute.extraction.pipeline import STOP_SECONDS, Claim, digest_of
from precompute.extraction.timing import StageClock
from precompute.sources.base import Source
from precompute.system.shared_memory import SharedMemory

TASKS_AT_ONCE = 2  # for each process: one is read while the other waits for its answer
MOST_DEATHS = 2  # at one sample; the second one is no accident
MOST_UNEXPLAINED = 10  # deaths between two samples in a run
CLOSE_SECONDS = 2.0
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


@dataclass(frozen=True)
class Result:
    """A finished task. found: `Found.sent` of each sample."""

    slot: int
    found: list[tuple[Any, ...]]

    @property
    def inputs(self) -> int:
        """Of the network."""
        return sum(len(one[4] or ()) for one in self.found)


@dataclass
class _Task:
    number: int
    slot: int
    rows: list[int]
    lost: dict[int, SampleError] = field(default_factory=dict)
    """Rows that processes died of, which are not tried any more."""


@dataclass
class _Process:
    number: int
    popen: subprocess.Popen[bytes]
    connection: Connection
    tasks: dict[int, _Task] = field(default_factory=dict)
    ready: bool = False


class Crew:
    """`layout.workers` processes that do `tasks`, lists of rows; a thread hears them and answers.

    packed: source and preprocessing · claim: see `Executor.blocks` · most: where so many inputs have come and are not
    taken yet, no further task is begun.
    """

    def __init__(
        self,
        layout: Layout,
        packed: Packed,
        source: Source,
        tasks: Iterator[list[int]],
        claim: Claim | None,
        most: int | None,
        clock: StageClock,
    ) -> None:
        self.layout, self._packed, self._source = layout, packed, source
        self._claim, self._most, self._clock = claim, most, clock
        self._memory = SharedMemory(layout.size)
        self.slots = Slots(self._memory.memory, layout)
        self._free = deque(range(layout.slots))
        self._tasks, self._numbers, self._made = tasks, itertools.count(), -1
        self._again, self._exhausted = deque[_Task](), False
        self._done, self._waiting = dict[int, Result](), 0
        self._deaths, self._unexplained = Counter[int](), 0
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._processes: dict[int, _Process] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="processes")

    def __enter__(self) -> Crew:
        self._selector.register(self._woken, selectors.EVENT_READ)
        try:
            for number in range(self.layout.workers):
                self._start(number)
            self._thread.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
        self._wake.close()
        if self._thread.ident is not None:
            self._thread.join()
        for process in self._processes.values():
            process.connection.close()  # which each of them hears, and ends
        until = time.monotonic() + CLOSE_SECONDS
        for process in self._processes.values():
            try:
                process.popen.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        self._selector.close()
        self._woken.close()
        self._memory.close()
        self._packed.memory.close()

    def results(self, stop: Callable[[], object]) -> Generator[Result, None, None]:
        """Of all tasks in their order, as they come; no further ones once `stop` says so while none comes.

        Raises what a process could not go on from, and PrecomputeError where processes keep dying.
        """
        for number in itertools.count():
            since = time.perf_counter()
            with self._changed:
                while number not in self._done:
                    if self._error is not None:
                        raise self._error
                    if self._exhausted and number > self._made:
                        return
                    asks = number or self._source.reads_at_once  # processes take a while to start
                    if not self._changed.wait(STOP_SECONDS) and asks and stop():
                        return
                result = self._done.pop(number)
                self._waiting -= result.inputs
                self._feed()
            self._clock.waited_images += time.perf_counter() - since
            yield result

    def give_back(self, slot: int) -> None:
        """Nothing in this slot is needed any more."""
        with self._changed:
            self._free.append(slot)
            self._feed()

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            inherited = (theirs.fileno(), self._memory.fd, self._packed.memory.fd)
            command = [sys.executable, "-I", "-c", START, str(theirs.fileno())]
            # One thread each: torch would resize each picture with a team of as many as there are cores
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self.slots.mark(number, NO_ROW)
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                pass_fds=inherited,
            )
        process = _Process(number, popen, Connection(ours.detach()))
        self._processes[number] = process
        self._selector.register(process.connection, selectors.EVENT_READ, process)
        with contextlib.suppress(OSError):  # it is not there any more, which is heard
            process.connection.send(sys.path)
            process.connection.send((number, self.layout, inherited[1], inherited[2], self._packed.places))

    def _serve(self) -> None:
        """Hear the processes, until closed."""
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.data is None:
                        return
                    try:
                        message = key.data.connection.recv()
                    except (EOFError, OSError):
                        self._replace(key.data)
                        continue
                    self._hear(key.data, message)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for results
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _hear(self, process: _Process, message: tuple[Any, ...]) -> None:
        kind, *given = message
        if kind == "ask":
            number, digests = given
            claim = self._claim
            granted = [claim is None or claim(*one) for one in digests]
            with contextlib.suppress(OSError):
                process.connection.send(("granted", number, granted))
            return
        if kind == "broken":
            raise given[0]
        with self._changed:
            if kind == "done":
                number, found, read, decode = given
                task = process.tasks.pop(number)
                clock = self._clock
                clock.read, clock.decode, clock.apart = clock.read + read, clock.decode + decode, clock.apart + decode
                self._finish(task, found)
            else:
                process.ready = True
            self._feed()

    def _finish(self, task: _Task, found: list[tuple[Any, ...]]) -> None:
        for row, error in task.lost.items():
            digest, size, mtime = digest_of(self._source, row)
            found.append((row, digest, size, mtime, None, error, None, False))
        result = Result(task.slot, found)
        self._done[task.number] = result
        self._waiting += result.inputs
        self._changed.notify_all()

    def _feed(self) -> None:
        """Give tasks to processes that have room for some: first to those that have none."""
        if self._closed or self._error is not None:
            return
        for held in range(TASKS_AT_ONCE):
            for process in self._processes.values():
                if process.ready and len(process.tasks) == held:
                    task = self._next()
                    if task is None:
                        return
                    self._send(process, task)

    def _send(self, process: _Process, task: _Task) -> None:
        process.tasks[task.number] = task
        rows = [row for row in task.rows if row not in task.lost]
        with contextlib.suppress(OSError):  # it is not there any more, which is heard
            process.connection.send(("task", task.number, task.slot, rows, self._claim is not None))

    def _next(self) -> _Task | None:
        if self._again:
            return self._again.popleft()
        if not self._free or self._exhausted:
            return None
        if self._most is not None and self._waiting >= self._most:
            return None
        rows = next(self._tasks, None)
        if rows is None:
            self._exhausted = True
            self._changed.notify_all()
            return None
        self._made = next(self._numbers)
        return _Task(self._made, self._free.popleft(), rows)

    def _replace(self, process: _Process) -> None:
        """Another one does what a process had to do that is not there any more."""
        self._selector.unregister(process.connection)
        process.connection.close()
        code = process.popen.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        if not process.ready:
            raise PrecomputeError(
                f"A process that was to read and decode ended before it began ({how}).",
                hint="See what it said above, or let threads read and decode (LocalExecutor).",
            )
        row = self.slots.marked(process.number)
        with self._changed:
            for task in process.tasks.values():
                if row in task.rows:
                    self._blame(task, row, code, how)
                self._again.append(task)
            if row == NO_ROW:
                self._unexplained += 1
                if self._unexplained > MOST_UNEXPLAINED:
                    raise _keep_dying(f"{self._unexplained} processes that read and decode ended", how)
            self._start(process.number)
            for task in [task for task in self._again if len(task.lost) == len(task.rows)]:
                self._again.remove(task)
                self._finish(task, [])

    def _blame(self, task: _Task, row: int, code: int, how: str) -> None:
        """A process ended at `row`. Of a decoder's crash the sample is the cause, of being killed it need not be."""
        self._deaths[row] += 1
        if self._deaths[row] < MOST_DEATHS:
            return
        if code >= 0 or -code in (signal.SIGKILL, signal.SIGTERM):
            raise _keep_dying(f"{self._deaths[row]} processes ended at {self._source.sample_name(row)}", how)
        task.lost[row] = SampleError(f"its decoder ended the process with {how}, twice", reason="UNDECODABLE")


def _keep_dying(what: str, how: str) -> PrecomputeError:
    return PrecomputeError(
        f"{what} ({how}).",
        hint="Everything computed so far is kept. Where memory ran short (see dmesg), take fewer --workers, "
        "and run the same command again.",
    )
