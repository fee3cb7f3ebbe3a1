"""The connection to Ray: joining a cluster or starting one, what is sent to its nodes, and what one of them decides."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from precompute.errors import DeviceError, PrecomputeError, reason_of
from precompute.extraction.executors.names import CLUSTER, INSTALL_RAY

START_SECONDS = 600.0  # in which a busy cluster must have begun
CONNECTIONS = 3  # that are tried where the client server gives one up; an address without a server is given up at once
THIS_MACHINE = "local"  # as Ray calls it: a cluster of its own, even where there is one already


class RayCluster:
    """Joined, or started where `address` is None and RAY_ADDRESS is not set.

    ray: the library. Raises DeviceError where it is not installed, or no cluster can be reached.
    """

    def __init__(self, address: str | None) -> None:
        self.ray = ray_library()
        self._sent: dict[int, tuple[Any, Any]] = {}
        self._started = not self.ray.is_initialized()
        if self._started:
            self._connect(address)
        elif address is not None:
            raise DeviceError(
                f"This process is connected to Ray already, perhaps not to {address}.",
                hint="Use the executor ray, which uses that connection, or call ray.shutdown() before.",
            )

    def _connect(self, address: str | None) -> None:
        where = address or os.environ.get("RAY_ADDRESS") or THIS_MACHINE
        options: dict[str, Any] = {}
        if not where.startswith(CLUSTER):  # whose server it would be asked of
            options = {"log_to_driver": False, "logging_level": "error"}
        if where == THIS_MACHINE:
            options["include_dashboard"] = False
        try:
            with _own_signals(), _own_modules() if where == THIS_MACHINE else contextlib.nullcontext():
                self._init(where, options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise DeviceError(
                f"Ray cannot be reached at {where}, or not be started: {reason_of(error)}",
                hint="Check the address, and that all nodes have the same release of Ray and of Python: ray status",
            ) from error

    def _init(self, where: str, options: dict[str, Any]) -> None:
        """Connect. Ray's client server starts a process for each connection, which now and then does not come up; it
        fails after 30 s, and the next one does."""
        for left in reversed(range(CONNECTIONS)):
            try:
                self.ray.init(where, **options)
            except ConnectionAbortedError:
                if not left:
                    raise
            else:
                return

    def sent(self, what: str, value: Any) -> Any:
        """A copy in the object store, once for each node. Raises DeviceError where it cannot be pickled."""
        if id(value) not in self._sent:
            try:
                self._sent[id(value)] = (value, self.ray.put(value))  # the value, too, so that its id stays its own
            except (TypeError, AttributeError, ValueError) as error:
                raise DeviceError(
                    f"The {what} cannot be sent to other processes: {reason_of(error)}",
                    hint="Use --executor local, or make it of parts that can be pickled.",
                ) from error
        return self._sent[id(value)][1]

    def asked(self, function: Callable[..., Any], *given: Any, gpu: bool) -> Any:
        """What `function` gives on one node: where `gpu`, on one that has a GPU, if any has.

        Raises the PrecomputeError that it returns, and DeviceError where no node could run it.
        """
        there = self.ray.cluster_resources()
        if there.get("CPU", 0) < 1:
            raise DeviceError("No node of the cluster has a core for Ray.", hint="See with `ray status`.")
        gpus = 1 if gpu and there.get("GPU", 0) >= 1 else 0
        call = self.ray.remote(function).options(num_cpus=1, num_gpus=gpus)
        try:
            value = self.ray.get(call.remote(*given), timeout=START_SECONDS)
        except self.ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise DeviceError(
                f"No node of the cluster could say what it computes with: {type(cause).__name__}: {reason_of(cause)}",
                hint="See with `ray status` whether nodes are free. All need precompute, and your own modules.",
            ) from error
        if isinstance(value, PrecomputeError):
            raise value
        return value

    def forget(self) -> None:
        """What was sent is not needed any more."""
        self._sent.clear()

    def close(self) -> None:
        """End Ray where it was started here."""
        self.forget()
        if self._started:
            self.ray.shutdown()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """What SIGTERM does stays as it is: `ray.init` would let it end the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _own_modules() -> Iterator[None]:
    """Processes that start inside import what this one does, such as a network of the user's own."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def ray_library() -> Any:
    """Ray. Raises DeviceError where it is not installed."""
    try:  # by name, so that type checkers need not read all of it
        ray = import_module("ray")
        import_module("ray.exceptions")
        import_module("ray.util.scheduling_strategies")
    except ImportError as error:
        raise DeviceError("The executor ray needs Ray, which is not installed.", hint=INSTALL_RAY) from error
    return ray
