"""One run of a crew: which process does what, and what comes of it. See `processes`."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from precompute.errors import PrecomputeError, SampleError
from precompute.extraction.executors.crew import Crew, Process, Task
from precompute.extraction.executors.slots import NO_ROW
from precompute.extraction.pipeline import STOP_SECONDS, Claim, hashed
from precompute.extraction.timing import StageClock

TASKS_AT_ONCE = 2  # for each process: one is read while the other waits for its answer
START_SECONDS = 10.0  # that processes may take for their first sample before a stop is asked about
MOST_DEATHS = 2  # at one sample; the second one is no accident
MOST_UNEXPLAINED = 10  # deaths between two samples in a run


@dataclass(frozen=True)
class Result:
    """A finished task. found: `Found.sent` of each sample · inputs: of the network."""

    slot: int
    found: list[tuple[Any, ...]]
    inputs: int


class Dispatch:
    """`tasks`, lists of rows, done by the processes of `crew`; a thread hears them and answers.

    claim: see `Executor.blocks` · most: while so many inputs wait for the engine, no further task is begun.
    """

    def __init__(
        self, crew: Crew, tasks: Iterator[list[int]], claim: Claim | None, most: int | None, clock: StageClock
    ) -> None:
        self.crew = crew
        self._claim, self._most, self._clock = claim, most, clock
        self._free = deque(range(crew.layout.slots))
        self._tasks, self._numbers, self._made = tasks, itertools.count(), -1
        self._again, self._exhausted = deque[Task](), False
        self._done, self._waiting = dict[int, Result](), 0
        self._deaths, self._unexplained = Counter[int](), 0
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="processes")

    def __enter__(self) -> Dispatch:
        self.crew.selector.register(self._woken, selectors.EVENT_READ)
        with self._changed:
            self._feed()  # those that are there since an earlier run
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
        self._wake.close()
        if self._thread.ident is not None:
            self._thread.join()
        self.crew.selector.unregister(self._woken)
        self._woken.close()

    def results(self, stop: Callable[[], object]) -> Generator[Result, None, None]:
        """Of all tasks in their order, as they come; no further ones once `stop` returns true while none comes.

        Raises what a process could not continue from, and PrecomputeError where processes keep dying.
        """
        for number in itertools.count():
            since = time.perf_counter()
            with self._changed:
                while number not in self._done:
                    if self._error is not None:
                        raise self._error
                    if self._exhausted and number > self._made:
                        return
                    asks = number or self.crew.source.reads_at_once or time.perf_counter() - since > START_SECONDS
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

    def _serve(self) -> None:
        """Hear the processes, until closed."""
        try:
            while True:
                for key, _ in self.crew.selector.select():
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

    def _hear(self, process: Process, message: tuple[Any, ...]) -> None:
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

    def _finish(self, task: Task, found: list[tuple[Any, ...]]) -> None:
        for row, error in task.lost.items():
            item, _ = hashed(self.crew.source, row)
            found.append((row, item.digest, item.size, item.mtime, None, error, None, False))
        result = Result(task.slot, found, sum(len(one[4] or ()) for one in found))
        self._done[task.number] = result
        self._waiting += result.inputs
        self._changed.notify_all()

    def _feed(self) -> None:
        """Give tasks to processes that have room for some: first to those that have none."""
        if self._closed or self._error is not None:
            return
        for held in range(TASKS_AT_ONCE):
            for process in self.crew.processes.values():
                if process.ready and len(process.tasks) == held:
                    task = self._next()
                    if task is None:
                        return
                    self._send(process, task)

    def _send(self, process: Process, task: Task) -> None:
        process.tasks[task.number] = task
        rows = [row for row in task.rows if row not in task.lost]
        with contextlib.suppress(OSError):  # it is no longer there, which is heard
            process.connection.send(("task", task.number, task.slot, rows, self._claim is not None))

    def _next(self) -> Task | None:
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
        return Task(self._made, self._free.popleft(), rows)

    def _replace(self, process: Process) -> None:
        """Another one does what a process had to do that is no longer there."""
        row = self.crew.slots.marked(process.number)
        with self._changed:
            status = self.crew.replace(process)
            how = _words(status)
            if status is None or not process.ready:
                when = "" if process.ready else " before it began"
                raise PrecomputeError(
                    f"A process that was to read and decode ended{when} ({how}).",
                    hint="See what it said above, or let threads read and decode: --executor local.",
                )
            for task in process.tasks.values():
                if row in task.rows:
                    self._blame(task, row, status, how)
                self._again.append(task)
            process.tasks.clear()
            if row == NO_ROW:
                self._unexplained += 1
                if self._unexplained > MOST_UNEXPLAINED:
                    raise _keep_dying(f"{self._unexplained} processes that read and decode ended", how)
            for task in [task for task in self._again if len(task.lost) == len(task.rows)]:
                self._again.remove(task)
                self._finish(task, [])
            self._feed()  # the others need not wait for the new one

    def _blame(self, task: Task, row: int, status: int, how: str) -> None:
        """A process ended at `row`. Of a decoder's crash the sample is the cause, of being killed it need not be."""
        self._deaths[row] += 1
        if self._deaths[row] < MOST_DEATHS:
            return
        if status >= 0 or -status in (signal.SIGKILL, signal.SIGTERM):
            raise _keep_dying(f"{self._deaths[row]} processes ended at {self.crew.source.sample_name(row)}", how)
        task.lost[row] = SampleError(f"its decoder ended the process with {how}, twice", reason="UNDECODABLE")


def _words(status: int | None) -> str:
    if status is None:
        return "with the one that starts them"
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _keep_dying(what: str, how: str) -> PrecomputeError:
    return PrecomputeError(
        f"{what} ({how}).",
        hint="Everything computed so far is kept. Where memory ran short (see dmesg), take fewer --workers, "
        "and run the same command again.",
    )
