"""Where the arithmetic of a fit is done: arrays of NumPy on the CPU, or tensors of torch on another device.

The two libraries share most names, so a solver is written once, with `xp` for either of them. What they call
differently is here. On the CPU it is NumPy, with which a fit takes 0.7 of the time of torch's on an AMD (figures in
docs/performance.md), and which a command line need not wait for.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, get_lapack_funcs

from precompute.errors import DeviceError
from precompute.heads.base.memory import available_bytes
from precompute.heads.base.rows import BLOCK_BYTES
from precompute.system import physical_memory

if TYPE_CHECKING:
    import numpy.typing as npt

    # An array of NumPy or a tensor of torch: of what both can, neither's types know all.
    Array = Any

__all__ = ["Arrays", "arrays_on", "cast", "namespace", "usable_device", "widened"]

ON_DEVICE = 2**26  # logits at once where there is no cache to stay in
BLOCK_ON_DEVICE = 2**29  # bytes; a device of thousands of cores waits for smaller ones
IN_CACHE = 2**17  # logits at once that stay in a processor's cache


class Arrays(ABC):
    """Arrays of one library on one device.

    Attributes: xp: the library · dtype: its name of what is computed in, float32 or float64 · wide: its name of what
    sums over samples are in, float64 where the device has it · logits_at_once: numbers to work on element by element
    · block_bytes: of features to multiply at once.
    """

    xp: Any
    dtype: Any
    wide: Any
    logits_at_once: int
    block_bytes: int

    @abstractmethod
    def put(self, array: npt.NDArray[Any], dtype: Any = None) -> Array:
        """`array` on the device, as it is or in a `dtype` of the library. It may share memory."""

    @abstractmethod
    def fetch(self, array: Array) -> npt.NDArray[Any]:
        """An array of the device as NumPy's."""

    @abstractmethod
    def zeros(self, *shape: int) -> Array: ...

    @abstractmethod
    def empty(self, *shape: int) -> Array: ...

    @abstractmethod
    def free_bytes(self) -> int:
        """Free bytes of the device's memory."""

    @abstractmethod
    def cholesky(self, matrix: Array) -> Array | None:
        """The lower factor of a symmetric `matrix` (d, d), which may be overwritten; None where it is not positive
        definite."""

    @abstractmethod
    def solve(self, factor: Array, vectors: Array) -> Array:
        """The solution (d, k) for `vectors` (d, k), by what `cholesky` returned."""

    @abstractmethod
    def inverse(self, factor: Array) -> Array:
        """The inverse (d, d) of what `cholesky` returned: R, with R'R the inverse of the matrix."""


class _NumPy(Arrays):
    xp, wide, logits_at_once, block_bytes = np, np.float64, IN_CACHE, BLOCK_BYTES

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def put(self, array: npt.NDArray[Any], dtype: Any = None) -> Array:
        return array if dtype is None else array.astype(dtype, copy=False)

    def fetch(self, array: Array) -> npt.NDArray[Any]:
        return np.asarray(array)

    def zeros(self, *shape: int) -> Array:
        return np.zeros(shape, self.dtype)

    def empty(self, *shape: int) -> Array:
        return np.empty(shape, self.dtype)

    def free_bytes(self) -> int:
        free = available_bytes()
        return physical_memory() // 2 if free is None else free

    def cholesky(self, matrix: Array) -> Array | None:
        try:
            # Its transpose is the same matrix, in the order of LAPACK: no copy.
            return cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)[0]
        except LinAlgError:
            return None

    def solve(self, factor: Array, vectors: Array) -> Array:
        return cho_solve((factor, True), vectors, check_finite=False)

    def inverse(self, factor: Array) -> Array:
        (trtri,) = get_lapack_funcs(("trtri",), (factor,))
        return np.tril(trtri(factor, lower=True)[0])


class _Torch(Arrays):
    logits_at_once, block_bytes = ON_DEVICE, BLOCK_ON_DEVICE

    def __init__(self, dtype: np.dtype[Any], device: Any) -> None:
        import torch

        self.xp, self._device = torch, device
        self.dtype = getattr(torch, dtype.name)
        self.wide = torch.float32 if device.type == "mps" else torch.float64

    def put(self, array: npt.NDArray[Any], dtype: Any = None) -> Array:
        return self.xp.as_tensor(np.ascontiguousarray(array)).to(self._device, dtype)

    def fetch(self, array: Array) -> npt.NDArray[Any]:
        return np.asarray(array.cpu().numpy())

    def zeros(self, *shape: int) -> Array:
        return self.xp.zeros(shape, dtype=self.dtype, device=self._device)

    def empty(self, *shape: int) -> Array:
        return self.xp.empty(shape, dtype=self.dtype, device=self._device)

    def free_bytes(self) -> int:
        if self._device.type == "cuda":
            cuda, device = self.xp.cuda, self._device
            unused = cuda.memory_reserved(device) - cuda.memory_allocated(device)  # torch keeps what it has freed
            return int(cuda.mem_get_info(device)[0] + unused)
        return physical_memory() // 2 if (free := available_bytes()) is None else free

    def cholesky(self, matrix: Array) -> Array | None:
        factor, failed = self.xp.linalg.cholesky_ex(matrix)
        return None if int(failed) else factor

    def solve(self, factor: Array, vectors: Array) -> Array:
        return self.xp.cholesky_solve(vectors, factor)

    def inverse(self, factor: Array) -> Array:
        one = self.xp.eye(len(factor), dtype=factor.dtype, device=factor.device)
        return self.xp.linalg.solve_triangular(factor, one, upper=False)


def arrays_on(name: str, dtype: np.dtype[Any], head: str) -> Arrays:
    """Where a head of the class `head` computes in `dtype`: NumPy for "cpu", else torch on the device of that name.

    Raises DeviceError where the machine lacks the device, or the device lacks the dtype.
    """
    return _NumPy(dtype) if name == "cpu" else _Torch(dtype, usable_device(name, dtype, head))


def namespace(array: Array) -> Any:
    """The library that `array` is of."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def cast(array: Array, dtype: Any) -> Array:
    """`array` in a `dtype` of its library."""
    return array.astype(dtype, copy=False) if isinstance(array, np.ndarray) else array.to(dtype)


def widened(array: Array) -> Array:
    """`array` in float64, where its device has that."""
    return array if str(array.device).startswith("mps") else cast(array, namespace(array).float64)


def usable_device(name: str, dtype: np.dtype[Any], head: str) -> Any:
    """The torch device of that name, once it has shown that it can hold a `dtype` (Apple's has no float64)."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device, dtype=getattr(torch, dtype.name))
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises AssertionError where CUDA is compiled out
        raise DeviceError(
            f"{head} cannot use the device {name!r}: {str(error).partition(chr(10))[0]}",
            hint=f"Use device='cpu' (--device cpu), or one that `torch.accelerator.is_available()` finds and that has "
            f"{dtype}.",
        ) from error
    return device
