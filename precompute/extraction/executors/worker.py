"""A process that reads and decodes samples for another one, which drives the engine. See `processes`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from precompute.engines.base import Tensors
from precompute.errors import PrecomputeError, SampleError, UsageError, reason_of
from precompute.extraction.executors.packing import unpacked
from precompute.extraction.executors.slots import NO_ROW, Layout, Slots
from precompute.inputs.base import Preprocess
from precompute.sources.base import Raw, Source
from precompute.system.shared_memory import mapped


@dataclass(frozen=True)
class Task:
    """Rows whose inputs go into one slot. asks: whether their digests are sent, and an answer is waited for, first ·
    begun: their bytes or errors, of a source whose reads wait for a network: while others are decoded."""

    number: int
    slot: int
    rows: list[int]
    asks: bool
    begun: list[Future[Raw | SampleError]] | None = None


@dataclass
class Found:
    """What became of the sample in `row`; see `Decoded`.

    inputs: (place of the slot, number of the shape that it has) of each, in order; or, where no place was free or
    fits, (-1, its arrays); None where there are none.
    """

    row: int
    digest: bytes = b"\0" * 32
    size: int = 0
    mtime: int = 0
    inputs: list[tuple[int, Any]] | None = None
    error: SampleError | None = None
    weights: tuple[float, ...] | None = None
    cut: bool = False
    data: bytes | None = None

    @property
    def sent(self) -> tuple[Any, ...]:
        """All but its bytes: a tuple is read four times as fast as an object."""
        return self.row, self.digest, self.size, self.mtime, self.inputs, self.error, self.weights, self.cut


@dataclass
class Batch:
    """The samples of a task, as far as they are. read, decode: seconds, see `Decoded`."""

    task: Task
    found: list[Found]
    read: float = 0.0
    decode: float = 0.0
    granted: list[bool] = field(default_factory=list)


class Worker:
    """Reads what it is sent, asks which of it is wanted, and decodes that. One task is read while another waits."""

    def __init__(
        self,
        number: int,
        connection: Connection,
        source: Source,
        preprocess: Preprocess,
        slots: Slots,
        layout: Layout,
    ) -> None:
        self._number, self._connection = number, connection
        self._source, self._preprocess = source, preprocess
        self._slots, self._layout = slots, layout
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._tasks, self._asked, self._granted = deque[Task](), dict[int, Batch](), deque[Batch]()
        reads = source.reads_at_once
        self._readers = ThreadPoolExecutor(max(1, reads // layout.workers)) if reads else None

    def run(self) -> None:
        """Until the other process has ended or closes the connection."""
        threading.Thread(target=self._listen, daemon=True).start()
        self._connection.send(("ready",))
        while True:
            self._sort(wait=not (self._tasks or self._granted))
            if self._granted:
                self._decode(self._granted.popleft())
            elif self._tasks:
                self._read(self._tasks.popleft())

    def _listen(self) -> None:
        """Hear what comes, and end the process when the other one does, whatever it is doing."""
        try:
            while True:
                message = self._connection.recv()
                if message[0] == "task" and self._readers is not None:
                    message = (*message, [self._readers.submit(self._raw, row) for row in message[3]])
                self._inbox.put(message)
        finally:
            os._exit(0)

    def _sort(self, *, wait: bool) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                kind, *given = self._inbox.get(block=wait)
                wait = False
                if kind == "task":
                    self._tasks.append(Task(*given))
                else:
                    batch = self._asked.pop(given[0])
                    batch.granted = given[1]
                    self._granted.append(batch)

    def _read(self, task: Task) -> None:
        batch = Batch(task, [])
        began, busy = time.perf_counter(), 0.0
        for place, row in enumerate(task.rows):
            self._slots.mark(self._number, row)
            raw = self._raw(row) if task.begun is None else task.begun[place].result()
            if isinstance(raw, SampleError):
                table = self._source.table
                batch.found.append(Found(row, size=int(table.sizes[row]), mtime=int(table.mtimes[row]), error=raw))
                continue
            hashing = time.thread_time()
            digest = hashlib.sha256(raw.data).digest()
            batch.found.append(Found(row, digest, raw.size, raw.mtime, data=raw.data))
            busy += time.thread_time() - hashing
        self._slots.mark(self._number, NO_ROW)
        batch.read, batch.decode = time.perf_counter() - began - busy, busy
        if task.asks:
            self._asked[task.number] = batch
            whole = [(one.digest, one.row) for one in batch.found if one.error is None]
            self._connection.send(("ask", task.number, whole))
        else:
            batch.granted = [True] * sum(one.error is None for one in batch.found)
            self._granted.append(batch)

    def _raw(self, row: int) -> Raw | SampleError:
        try:
            return self._source.read(row)
        except SampleError as error:
            return error

    def _decode(self, batch: Batch) -> None:
        answers, place = iter(batch.granted), 0
        began = time.thread_time()
        for one in batch.found:
            data, one.data = one.data, None
            if data is None or not next(answers):
                continue
            self._slots.mark(self._number, one.row)
            try:
                made = self._preprocess.inputs(data, one.digest)
            except SampleError as error:
                one.error = error
                continue
            one.weights, one.cut = made.weights, made.cut
            one.inputs = []
            for tensors in made.tensors:
                one.inputs.append(self._put(batch.task.slot, place, tensors))
                place += 1
        self._slots.mark(self._number, NO_ROW)
        batch.decode += time.thread_time() - began
        found = [one.sent for one in batch.found]
        self._connection.send(("done", batch.task.number, found, batch.read, batch.decode))

    def _put(self, slot: int, place: int, tensors: Tensors) -> tuple[int, Any]:
        number = self._layout.number(tensors)
        if place >= self._layout.places or number is None:
            return -1, tuple(one.contiguous().numpy() for one in tensors)
        for there, here in zip(self._slots.tensors(slot, place, number), tensors, strict=True):
            there.copy_(here)
        return place, number


def main(connection: Connection, slots_fd: int, packed_fd: int) -> None:
    """Work for the process at the other end of `connection`, which says first what there is to do."""
    torch.set_num_threads(1)
    try:
        number, layout, places = connection.recv()
        source, preprocess = _loaded(packed_fd, places)
        slots = Slots(mapped(slots_fd, shared=True), layout)
        with preprocess.session():
            Worker(number, connection, source, preprocess, slots, layout).run()
    except EOFError:
        pass
    except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the process that drives the engine
        with contextlib.suppress(OSError):
            connection.send(("broken", _sendable(error)))
    os._exit(0)


def _loaded(fd: int, places: list[tuple[int, int]]) -> tuple[Source, Preprocess]:
    try:
        return unpacked(fd, places)  # type: ignore[no-any-return]
    except PrecomputeError:
        raise
    except Exception as error:  # of any module of the user's
        raise UsageError(
            f"A process that was to read and decode cannot load source and preprocessing: {reason_of(error)}.",
            hint="Let threads read and decode: --executor local.",
        ) from error


def _sendable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - its own
    except Exception:  # noqa: BLE001 - an error of any library
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
