"""How many threads BLAS takes while products of NumPy and solutions of SciPy take turns."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["one_pool"]

FEW_OPERATIONS = 3e7  # in a product; with fewer, threads wait for each other longer than they work
SCIPYS = "scipy.libs"  # the folder in which SciPy's wheels bring an OpenBLAS of their own


@contextmanager
def one_pool(operations: float) -> Iterator[None]:
    """SciPy's BLAS with one thread, and NumPy's too where a product takes few floating point operations.

    The wheels of NumPy and SciPy bring an OpenBLAS each, whose threads spin while they wait. Where calls of the two
    take turns, the threads that wait for one hold the cores that the other needs: on two cores that took 2 to 50 times
    as long. The numbers of threads are those of the whole process, and are put back at the end.
    """
    libraries = [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]
    if operations >= FEW_OPERATIONS:
        libraries = [library for library in libraries if SCIPYS in library.filepath]
    before = [library.get_num_threads() for library in libraries]
    try:
        for library in libraries:
            library.set_num_threads(1)
        yield
    finally:
        for library, number in zip(libraries, before, strict=True):
            library.set_num_threads(number)
