"""How many threads BLAS takes while products of NumPy and solutions of SciPy take turns."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["one_pool"]

FEW_OPERATIONS = 3e7  # in a product; with fewer, threads wait for each other longer than they work
SCIPYS = "scipy.libs"  # the folder in which SciPy's wheels bring an OpenBLAS of their own


@dataclass
class _Use:
    """How many fits want a library to have one thread, and how many threads it had before the first of them."""

    fits: int
    before: int


_uses: dict[str, _Use] = {}  # by the library's file
_lock = threading.Lock()  # of `_uses`, and of changes to the numbers of threads


@contextmanager
def one_pool(operations: float) -> Iterator[None]:
    """SciPy's BLAS with one thread, and NumPy's too where a product takes few floating point operations.

    The wheels of NumPy and SciPy bring an OpenBLAS each, whose threads spin while they wait. Where calls of the two
    take turns, the threads that wait for one hold the cores that the other needs: on two cores that took 2 to 50 times
    as long. The numbers of threads are those of the whole process, so fits in several threads share them: a library has
    one thread from the start of the first fit that wants it to the end of the last, which puts its number back.
    """
    libraries = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    if operations >= FEW_OPERATIONS:
        libraries = [library for library in libraries if SCIPYS in library.filepath]
    for library in libraries:
        _enter(library)
    try:
        yield
    finally:
        for library in libraries:
            _leave(library)


def _enter(library: Any) -> None:
    with _lock:
        use = _uses.setdefault(library.filepath, _Use(0, library.get_num_threads()))
        use.fits += 1
        _set(library, 1)


def _leave(library: Any) -> None:
    with _lock:
        use = _uses[library.filepath]
        use.fits -= 1
        if not use.fits:
            _set(library, _uses.pop(library.filepath).before)


def _set(library: Any, number: int) -> None:
    """Set a number of threads, from whichever thread asks.

    threadpoolctl 3.8 lets the first thread that sets a number of OpenBLAS's be the only one that can, until it gives
    that up; the last fit to end may be in another one. Where a program sets its own limits in another thread, they
    stay as they are.
    """
    library.set_num_threads(number)
    give_up = getattr(library, "clear_controlling_thread", None)
    if give_up is not None:
        give_up()
