"""What a training needs of memory, as far as that is known before it begins, and what to say where it does not fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from precompute.errors import TrainingError
from precompute.finetuning.network import TailNetwork, n_parameters
from precompute.finetuning.settings import TailSettings
from precompute.heads.base.memory import available_bytes

ARRAYS_PER_PARAMETER = 4  # the gradient, AdamW's two moments, the best so far; the parameters themselves are there
CPU_ALLOCATOR = "can't allocate memory"  # in the RuntimeError of torch's allocator for the CPU


def check_memory(network: TailNetwork, shape: tuple[int, ...], settings: TailSettings) -> None:
    """Raise TrainingError where the arrays that a step certainly holds at once do not fit, with a batch that would.

    What a step keeps for its gradients is found by one sample; what operations take for a moment comes on top, so a
    training that passes may still run out.
    """
    free = _free(settings.device)
    if free is None:
        return
    fixed = 4 * ARRAYS_PER_PARAMETER * n_parameters(network)
    a_sample = saved_bytes(network, shape, settings.device) // (2 if settings.precision == "bf16" else 1)
    needed = fixed + settings.batch_size * a_sample
    if needed <= free:
        return
    fitting = max(0, free - fixed) // max(1, a_sample)
    raise TrainingError(
        f"A step of {settings.batch_size} samples needs {needed / 2**30:,.1f} GiB of memory on {settings.device} or "
        f"more, and {free / 2**30:,.1f} GiB are free.",
        hint=f"Try --batch-size {_power_below(fitting)}, or a cut further behind." if fitting else _SMALLER,
    )


def saved_bytes(network: TailNetwork, shape: tuple[int, ...], device: str) -> int:
    """Bytes that a step keeps of each sample for its gradients, parameters not counted."""
    kept: dict[int, int] = {parameter.untyped_storage().data_ptr(): 0 for parameter in network.parameters()}
    alive: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # its place must not be given to another meanwhile
        return tensor

    with (
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        reporting_memory(1, device),
    ):
        network(torch.zeros(1, *shape, device=device))
    return sum(kept.values())


@contextlib.contextmanager
def reporting_memory(batch_size: int, device: str) -> Iterator[None]:
    """Inside, running out of memory is a TrainingError that names the batch size to try."""
    with _reporting(
        f"A step of {batch_size} samples does not fit into the memory of {device}.",
        f"Try --batch-size {_power_below(batch_size - 1)}." if batch_size > 1 else _SMALLER,
    ):
        yield


@contextlib.contextmanager
def reporting_pass_memory(samples: int, device: object) -> Iterator[None]:
    """Inside, where nothing is trained, running out of memory is a TrainingError."""
    with _reporting(
        f"{samples} samples in one pass through the frozen tail do not fit into the memory of {device}.", _SMALLER
    ):
        yield


@contextlib.contextmanager
def _reporting(message: str, hint: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(message, hint=hint) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or NumPy says that there was no memory."""
    out_of_memory: Any = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
    return isinstance(error, MemoryError | out_of_memory) or CPU_ALLOCATOR in str(error)


_SMALLER = "Cut further behind (--layer), or train on a machine with more memory."


def _power_below(number: int) -> int:
    """The largest power of two that is not above."""
    return 1 << (max(1, number).bit_length() - 1)


def _free(device: str) -> int | None:
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return available_bytes()
