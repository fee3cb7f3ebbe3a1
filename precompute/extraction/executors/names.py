"""Executors by the names that a command has for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from precompute.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from precompute.extraction.executors.base import Executor  # which loads torch

AUTO, LOCAL, PROCESSES, RAY = "auto", "local", "processes", "ray"
HERE = (AUTO, LOCAL, PROCESSES)
CLUSTER = "ray://"
INSTALL_RAY = "pip install 'precompute[ray]'"


def check_executor(name: str, *, exact: bool = False) -> None:
    """Raise UsageError for a name that is none, DeviceError where Ray is not installed; nothing is loaded."""
    address = name.removeprefix(CLUSTER) if name.startswith(CLUSTER) else None
    host, _, port = (address or "").rpartition(":")
    if name not in (*HERE, RAY) and not (host and port.isdecimal() and int(port) < 2**16):
        raise UsageError(
            f"executor must be {', '.join(HERE)}, ray or ray://HOST:PORT. Got {name!r} instead.",
            hint="See --executor. The port is that of Ray's client server, 10001 unless it was started with another.",
        )
    if exact and name in HERE:
        raise UsageError(f"--exact is about several machines, and {name} is this one alone.", hint="Leave it out.")
    if name not in HERE and find_spec("ray") is None:
        raise DeviceError(f"The executor {name} needs Ray, which is not installed.", hint=INSTALL_RAY)


@contextlib.contextmanager
def opened(executor: Executor | str | None, *, workers: int | None = None, exact: bool = False) -> Iterator[Executor]:
    """An executor; one that is made here, of a name, is closed at the end."""
    if executor is not None and not isinstance(executor, str):
        yield executor
        return
    made = _made(executor or AUTO, workers, exact)
    try:
        yield made
    finally:
        made.close()


def _made(name: str, workers: int | None, exact: bool) -> Executor:
    if name == AUTO:
        from precompute.extraction.executors.auto import AutoExecutor

        return AutoExecutor(workers)
    if name == LOCAL:
        from precompute.extraction.executors.local import LocalExecutor

        return LocalExecutor(workers)
    if name == PROCESSES:
        from precompute.extraction.executors.processes import ProcessExecutor

        return ProcessExecutor(workers)
    from precompute.extraction.executors.ray import RayExecutor

    return RayExecutor(name if name != RAY else None, workers=workers, exact=exact)
