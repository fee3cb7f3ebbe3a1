"""Run one section in a process of its own and collect its rows, up to a time limit."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from check_gpu.settings import Settings

GRACE_SECONDS = 8.0
"""A section that has used up its time begins nothing new; so long may take what it is at."""
Row = dict[str, Any]


class Report:
    """Where a section, in its process, puts what it finds."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the section should begin nothing new."""
        return self._end - time.monotonic()

    def row(self, name: str, **values: Any) -> None:
        """One measurement."""
        self._connection.send(("rows", {"name": name, **values}))

    def skip(self, name: str, why: str) -> None:
        """One measurement that is not made."""
        self._connection.send(("skipped", {"name": name, "why": why}))

    def error(self, name: str, error: str, details: str = "") -> None:
        """Something that went wrong; details: such as a traceback."""
        self._connection.send(("errors", {"name": name, "error": error, "traceback": details}))

    def enough(self, name: str, seconds: float) -> bool:
        """Whether `seconds` are left for the measurement `name`; where they are not it is reported as skipped."""
        if self.left >= seconds:
            return True
        self.skip(name, f"out of time: {max(0.0, self.left):.0f} s left, about {seconds:.0f} s needed")
        return False

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Record what goes wrong inside, and go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, it is recorded, and the next measurement runs
            lines = str(error).strip().splitlines() or [""]
            self.error(name, f"{type(error).__name__}: {lines[0][:300]}", traceback.format_exc())


@dataclass
class Outcome:
    """What one section found. status: "done", "skipped", "killed" (its time was up) or "crashed"."""

    title: str
    status: str = "done"
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    skipped: list[Row] = field(default_factory=list)
    errors: list[Row] = field(default_factory=list)

    def first(self, name: str) -> Row:
        """The row `name`, empty where there is none."""
        return next((row for row in self.rows if row["name"] == name), {})


Measure = Callable[[Settings, Report], None]
Listener = Callable[[str, Row], None]


def start_server() -> None:
    """Have the processes of the sections forked from one that has loaded torch, and has not touched CUDA."""
    multiprocessing.set_forkserver_preload(["torch", "torchvision", "sklearn", "h5py", "precompute.extraction.extract"])


def run(measure: Measure, title: str, settings: Settings, seconds: float, listen: Listener) -> Outcome:
    """Run one section for about `seconds`; `listen(kind, row)` is called for all that it reports."""
    outcome, began = Outcome(title), time.monotonic()
    context = multiprocessing.get_context("forkserver")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(measure, settings, seconds, its), name=title)
    process.start()
    its.close()
    try:
        while True:
            if not mine.poll(max(0.0, began + seconds + GRACE_SECONDS - time.monotonic())):
                outcome.status = "killed"
                error = f"killed after {time.monotonic() - began:.0f} s: its time was up"
                _keep(outcome, "errors", {"name": title, "error": error, "traceback": ""}, listen)
                break
            try:
                kind, row = mine.recv()
            except EOFError:
                break
            _keep(outcome, kind, row, listen)
    finally:
        _end(process, wait=outcome.status == "done")
    if outcome.status == "done" and process.exitcode:
        outcome.status = "crashed"
        error = f"the process ended with status {process.exitcode}"
        _keep(outcome, "errors", {"name": title, "error": error, "traceback": ""}, listen)
    outcome.seconds = time.monotonic() - began
    return outcome


def _keep(outcome: Outcome, kind: str, row: Row, listen: Listener) -> None:
    getattr(outcome, kind).append(row)
    listen(kind, row)


def _child(measure: Measure, settings: Settings, seconds: float, connection: Connection) -> None:
    os.setsid()  # its own workers end with it
    # A process from the fork server would start its own workers by another one; users have the system's default
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    report = Report(connection, seconds)
    with report.attempt("section"):
        measure(settings, report)


def _end(process: Any, *, wait: bool) -> None:
    """End the section's process and all that it has started."""
    process.join(2.0 if wait else 0.0)
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join(5.0)
