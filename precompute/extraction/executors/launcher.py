"""Starts the processes of a crew: by forking one that has loaded the libraries and does nothing else.

Loading torch and torchvision takes two seconds of processor time and 370 MB. What is forked has both at once and shares
the memory. The process that drives the engine must not be forked: it has threads. Where forking is not safe, as on
macOS, each process loads them for itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection

FORKS = sys.platform == "linux"
END_SECONDS = 2.0  # that a process may take to end by itself
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Torch would resize each picture with a team of as many threads as there are cores."""

MOST_DESCRIPTORS = 8
START = """
import sys
from multiprocessing.connection import Connection
connection, *others = map(int, sys.argv[2:])
connection = Connection(connection)
try:
    sys.path[:] = connection.recv()
except EOFError:
    sys.exit()
from precompute.extraction.executors import launcher
getattr(launcher, sys.argv[1])(connection, *others)
"""
"""Not through multiprocessing's spawn, which would run the user's script once more in each process."""


class Launcher:
    """Processes that run `worker.main`, known by a number."""

    def __init__(self) -> None:
        self._numbers, self._lock = count(), threading.RLock()
        self._running, self._ended = set[int](), dict[int, int]()
        self._spawned: dict[int, subprocess.Popen[bytes]] = {}
        self._popen: subprocess.Popen[bytes] | None = None
        if FORKS:
            self._channel, theirs = socket.socketpair()
            with theirs:
                self._popen = _spawned("serve", theirs.fileno())
            self._connection = Connection(os.dup(self._channel.fileno()))
            with contextlib.suppress(OSError):  # it is no longer there, which is heard
                self._connection.send(sys.path)

    @property
    def alive(self) -> bool:
        """Whether it can start any."""
        return self._popen is None or self._popen.poll() is None

    def start(self, ours: Connection, theirs: socket.socket, memory: Sequence[int], modules: Sequence[str]) -> int:
        """Start one that has `theirs`, the other end of `ours`, and these descriptors; its number.

        modules: that it will need, which are loaded once for all.
        """
        number, descriptors = next(self._numbers), [theirs.fileno(), *memory]
        with self._lock:
            if self._popen is None:
                self._spawned[number] = _spawned("worker", *descriptors)
            with contextlib.suppress(OSError):
                if self._popen is None:
                    ours.send(sys.path)
                else:
                    state = State(sys.path, os.getcwd(), dict(os.environ), modules)
                    self._running.add(number)
                    self._connection.send(("fork", number, state))
                    socket.send_fds(self._channel, [b"\0"], descriptors)
        return number

    def status(self, number: int) -> int | None:
        """Exit status of one that has ended, once it is known: -N where signal N ended it; None where it will never
        be, since what starts them has been killed."""
        with self._lock:
            if self._popen is None:
                return self._spawned.pop(number).wait()
            self._hear({number}, None)
            return self._ended.pop(number, None)

    def end(self, numbers: Sequence[int]) -> None:
        """Wait for the end of these, whose connections are closed; those that hang are killed."""
        until = time.monotonic() + END_SECONDS
        with self._lock:
            for popen in [self._spawned.pop(number) for number in numbers if number in self._spawned]:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    popen.wait(max(0.0, until - time.monotonic()))
                popen.kill()
                popen.wait()
            if self._popen is not None:
                self._hear(set(numbers), until)
                with contextlib.suppress(OSError):
                    for number in set(numbers) - self._ended.keys():
                        self._connection.send(("kill", number, None))
                self._hear(set(numbers), None)
                for number in numbers:
                    self._ended.pop(number, None)

    def close(self) -> None:
        """Kill those that are still there."""
        with self._lock:
            for popen in self._spawned.values():
                popen.kill()
                popen.wait()
            self._spawned.clear()
            if self._popen is not None:
                self._connection.close()  # which it hears, and kills them
                self._channel.close()
                if not self._running:
                    self._popen.kill()  # it may still be loading what nobody needs
                self._popen.wait()

    def _hear(self, numbers: set[int], until: float | None) -> None:
        """Hear of processes that end, until it is all of `numbers`."""
        with contextlib.suppress(EOFError, OSError):
            while numbers - self._ended.keys():
                if not self._connection.poll(None if until is None else max(0.0, until - time.monotonic())):
                    return
                number, status = self._connection.recv()
                self._running.discard(number)
                self._ended[number] = status


@dataclass(frozen=True)
class State:
    """Of the driver, when it starts a process. modules: see `Launcher.start`."""

    path: list[str]
    folder: str
    environment: dict[str, str]
    modules: Sequence[str]


def _spawned(role: str, *descriptors: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-c", START, role, *map(str, descriptors)]
    with _deaf():
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **ONE_THREAD},
            pass_fds=descriptors,
        )


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A process that is started inside never gets the signals that a terminal or a scheduler sends to all: the one
    that drives the engine decides what becomes of the run, and the others hear of it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker(connection: Connection, *memory: int) -> None:
    """What one does that is not forked."""
    from precompute.extraction.executors.worker import main

    main(connection, *memory)


def serve(connection: Connection) -> None:
    """What the one does that is forked: until the driver releases it or has ended, and then no process is left."""
    importlib.import_module("precompute.extraction.executors.worker")  # loads torch
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of it
    server = Server(connection)
    try:
        while True:
            server.step()
    except (EOFError, OSError):
        pass
    finally:
        server.kill_all()
    os._exit(0)


class Server:
    """Forks the process that it is in, which has one thread, as the driver at `connection` requests it."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._channel = connection, socket.socket(fileno=os.dup(connection.fileno()))
        self._processes: dict[int, int] = {}
        self._ended, ending = socket.socketpair()
        ending.setblocking(False)
        self._ending = ending
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(ending.fileno(), warn_on_full_buffer=False)

    def step(self) -> None:
        """Wait for something to do, and do it. Raises EOFError and OSError once the driver is no longer there."""
        descriptors = [self._connection.fileno(), self._ended.fileno()]
        ready, _, _ = select.select(descriptors, [], [])
        if descriptors[1] in ready:
            self._ended.recv(4096)
            for process, status in _reaped():
                self._connection.send((self._processes.pop(process), status))
        if descriptors[0] in ready:
            what, number, state = self._connection.recv()
            if what == "fork":
                self._fork(number, state)
            else:
                for process in [process for process, other in self._processes.items() if other == number]:
                    os.kill(process, signal.SIGKILL)

    def kill_all(self) -> None:
        """End the processes, which have nothing to lose."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def _fork(self, number: int, state: State) -> None:
        _, descriptors, _, _ = socket.recv_fds(self._channel, 1, MOST_DESCRIPTORS)
        sys.path[:] = state.path
        for name in state.modules:
            with contextlib.suppress(ImportError):  # whoever needs it says so
                importlib.import_module(name)
        process = os.fork()
        if not process:
            try:
                self._forked(state, *descriptors)
            finally:
                os._exit(1)
        self._processes[process] = number
        for descriptor in descriptors:
            os.close(descriptor)

    def _forked(self, state: State, connection: int, *memory: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for one in (self._connection, self._channel, self._ended, self._ending):
            one.close()
        os.environ.clear()
        os.environ.update({**state.environment, **ONE_THREAD})
        with contextlib.suppress(OSError):  # it may have gone
            os.chdir(state.folder)
        worker(Connection(connection), *memory)


def _reaped() -> Iterator[tuple[int, int]]:
    """Process id and status of all that have ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            yield process, os.waitstatus_to_exitcode(status)
