"""Objects whole, on their way from one process to others: pickled once, their arrays in memory that all of them share.

Here and not in `slots`, since this needs no torch.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any

from precompute.errors import UsageError, reason_of
from precompute.sources.base import Source
from precompute.system.shared_memory import SharedMemory, mapped

if TYPE_CHECKING:
    from precompute.inputs.base import Preprocess

ALIGN = 64  # bytes, as vector instructions like it
_LOCK = type(threading.Lock())


class _Pickler(pickle.Pickler):
    """A lock becomes a new one: that of a source guards what the source has unpacked, and each process has its own."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is _LOCK:
            return (threading.Lock, ())
        if isinstance(obj, type | FunctionType) and obj.__module__ == "__main__":
            raise pickle.PicklingError(f"{obj.__qualname__} is defined in the script itself, not in a module")
        return NotImplemented


@dataclass(frozen=True)
class Packed:
    """A value for other processes: in `memory` first its pickle, then its arrays. places: (start, length) of each."""

    memory: SharedMemory
    places: list[tuple[int, int]]


def packed(value: Any) -> Packed:
    """`value` for other processes. Raises whatever pickling raises for what cannot be sent."""
    stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    raws = [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]
    starts = [0, *itertools.accumulate(aligned(raw.nbytes) for raw in raws)]
    places = [(start, raw.nbytes) for start, raw in zip(starts, raws, strict=False)]
    memory = SharedMemory(starts[-1])
    for (start, length), raw in zip(places, raws, strict=True):
        memory.memory[start : start + length] = raw
    return Packed(memory, places)


def unpacked(fd: int, places: Sequence[tuple[int, int]]) -> Any:
    """What `packed` was given, in another process; its arrays are in memory that all of them share."""
    view = memoryview(mapped(fd, shared=False))
    first, *others = (view[start : start + length] for start, length in places)
    return pickle.loads(first, buffers=others)  # noqa: S301 - from the process that started this one


def packed_for(source: Source, preprocess: Preprocess) -> Packed:
    """See `packed`. Raises UsageError for what cannot be sent to another process."""
    sent: list[Packed] = []
    for one, what in (
        (preprocess, "The preprocessing of the backbone"),
        ((source, preprocess), f"The source {source.name}"),
    ):
        try:
            sent.append(packed(one))
        except Exception as error:  # whatever an object of the user's own raises
            for other in sent:
                other.memory.close()
            raise UsageError(
                f"{what} cannot be sent to other processes: {reason_of(error)}.",
                hint="Let threads read and decode (--executor local), or put it into a module that can be imported.",
            ) from error
    sent[0].memory.close()
    return sent[1]


def aligned(size: int) -> int:
    """The next number of bytes after which something may begin."""
    return math.ceil(size / ALIGN) * ALIGN
