"""Decoded samples on their way from one process to another: places of one size in shared memory."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch

from precompute.engines.base import Tensors
from precompute.extraction.executors.packing import aligned
from precompute.inputs.base import Shape, shape_of

MARK_BYTES = 8  # for each worker, the row that it is at
NO_ROW = -1


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
        self.place_bytes = max(sum(aligned(one.numel() * one.itemsize) for one in each) for each in examples)
        self.start = aligned(workers * MARK_BYTES)

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
    """The places of a layout in `memory`, as tensors that are there. Those made once are kept: they cost more than a
    copy of a small picture."""

    def __init__(self, memory: mmap.mmap, layout: Layout) -> None:
        self._memory, self._layout = memory, layout
        self._made: dict[tuple[int, int, int], Tensors] = {}
        self._marks = memoryview(memory)[: layout.workers * MARK_BYTES].cast("q")

    def mark(self, worker: int, row: int) -> None:
        """Say which row a worker is at, so that it is known when the worker is no longer there."""
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
                offset += aligned(count * dtype.itemsize)
            found = self._made[key] = tuple(made)
        return found
