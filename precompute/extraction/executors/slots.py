"""Decoded samples on their way from one process to another: places of one size in shared memory, and objects whole."""

from __future__ import annotations

import io
import itertools
import math
import mmap
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from precompute.engines.base import Tensors
from precompute.inputs.base import Shape, shape_of
from precompute.system.shared_memory import SharedMemory, mapped

ALIGN = 64  # bytes, as vector instructions like it
MARK_BYTES = 8  # for each worker, the row that it is at
NO_ROW = -1
_LOCK = type(threading.Lock())


class Layout:
    """How shared memory is cut: a mark for each worker, then `slots` of `places` inputs each.

    examples: one input of each shape, see `Preprocess.examples`; a place has room for the largest.
    """

    def __init__(self, examples: Sequence[Tensors], workers: int, slots: int, places: int) -> None:
        self.workers, self.slots, self.places = workers, slots, places
        self.parts = [[(tuple(one.shape), one.dtype, one.numel()) for one in each] for each in examples]
        self.numbers: dict[tuple[Shape, tuple[torch.dtype, ...]], int] = {
            (shape_of(each), tuple(one.dtype for one in each)): number for number, each in enumerate(examples)
        }
        self.place_bytes = max(sum(_aligned(one.numel() * one.itemsize) for one in each) for each in examples)
        self.start = _aligned(workers * MARK_BYTES)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those of the same examples that have the same are alike."""
        return self.workers, self.slots, self.places, self.place_bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return self.start + self.slots * self.places * self.place_bytes

    def number(self, tensors: Tensors) -> int | None:
        """Which of the examples has these shapes and dtypes; None for no one."""
        return self.numbers.get((shape_of(tensors), tuple(one.dtype for one in tensors)))


class Slots:
    """The places of a layout in `memory`, as tensors that lie there. Those made once are kept: they cost more than a
    copy of a small picture."""

    def __init__(self, memory: mmap.mmap, layout: Layout) -> None:
        self._memory, self._layout = memory, layout
        self._made: dict[tuple[int, int, int], Tensors] = {}
        self._marks = memoryview(memory)[: layout.workers * MARK_BYTES].cast("q")

    def mark(self, worker: int, row: int) -> None:
        """Say which row a worker is at, so that it is known when the worker is not there any more."""
        self._marks[worker] = row

    def marked(self, worker: int) -> int:
        """The row that a worker was at last, or NO_ROW."""
        return self._marks[worker]

    def tensors(self, slot: int, place: int, number: int) -> Tensors:
        """The memory of one place, as an input like the example of this number."""
        key = (slot, place, number)
        found = self._made.get(key)
        if found is None:
            layout, made = self._layout, []
            offset = layout.start + (slot * layout.places + place) * layout.place_bytes
            for shape, dtype, count in layout.parts[number]:
                flat = torch.frombuffer(self._memory, dtype=dtype, count=max(1, count), offset=offset)
                made.append(flat[:count].view(shape))
                offset += _aligned(count * dtype.itemsize)
            found = self._made[key] = tuple(made)
        return found


class _Pickler(pickle.Pickler):
    """A lock becomes a new one: that of a source guards what the source has unpacked, and each process has its own."""

    def reducer_override(self, obj: Any) -> Any:
        return (threading.Lock, ()) if type(obj) is _LOCK else NotImplemented


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
    starts = [0, *itertools.accumulate(_aligned(raw.nbytes) for raw in raws)]
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


def _aligned(size: int) -> int:
    return math.ceil(size / ALIGN) * ALIGN
