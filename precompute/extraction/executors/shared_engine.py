"""One engine for several threads, which has the next batch as soon as any of them has one."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from precompute.engines.base import Engine, Features, Tensors


class SharedEngine(Engine):
    """`inner`, driven by its own thread. Each thread that uses it has up to `depth` batches in progress.

    So a block of rows that comes to its end leaves the engine no gap where another one has begun. Tensors that are
    handed in must not be changed before their batch is finished.
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner.choice)
        self.notes, self.depth, self._inner = inner.notes, inner.depth, inner
        self._batches: queue.SimpleQueue[tuple[list[Tensors], Future[Features]]] = queue.SimpleQueue()
        self._own = threading.local()
        threading.Thread(target=self._drive, name="engine", daemon=True).start()

    def start(self, samples: Sequence[Tensors]) -> None:
        """See `Engine`."""
        result: Future[Features] = Future()
        self._under_way.append(result)
        self._batches.put((list(samples), result))

    def finish(self) -> Features:
        """See `Engine`."""
        return self._under_way.popleft().result()

    @property
    def _under_way(self) -> deque[Future[Features]]:
        """Of this thread."""
        found: deque[Future[Features]] = self._own.__dict__.setdefault("under_way", deque())
        return found

    def _drive(self) -> None:
        begun: deque[Future[Features]] = deque()
        while True:
            while len(begun) < self._inner.depth:
                try:
                    samples, result = self._batches.get(block=not begun)
                except queue.Empty:
                    break
                try:
                    self._inner.start(samples)
                except BaseException as error:  # noqa: BLE001 - for whoever handed it in
                    result.set_exception(error)
                else:
                    begun.append(result)
            result = begun.popleft()
            try:
                result.set_result(self._inner.finish())
            except BaseException as error:  # noqa: BLE001 - the same
                result.set_exception(error)
